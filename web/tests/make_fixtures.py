"""What the Python runtime computes, for the tests of web/: noise, timesteps, samplers, tokens, and pictures.

    python web/tests/make_fixtures.py         # writes web/tests/fixtures.json and web/tests/pictures.png

Pictures are drawn from examples/students/fashion, side by side in one file.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from rcdeploy_runtime import TextToImage
from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.files import write_json
from rcdeploy_runtime.guidance import guidance_embedding
from rcdeploy_runtime.manifest import Manifest
from rcdeploy_runtime.noise import GENERATORS, seeded_noise
from rcdeploy_runtime.noise_schedule import NoiseSchedule, spaced_timesteps
from rcdeploy_runtime.samplers import make_sampler
from rcdeploy_runtime.tokenizer import PromptTokenizer

HERE = Path(__file__).resolve().parent
STUDENT = HERE.parent.parent / "examples/students/fashion"
SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
SCHEDULES: list[dict[str, Any]] = [
    {**SD, "set_alpha_to_one": False, "timestep_spacing": "trailing"},
    {**SD, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
    {**SD, "prediction_type": "sample", "timestep_spacing": "linspace", "clip_sample": True},
    {"num_train_timesteps": 600, "original_inference_steps": 30},
    {"beta_schedule": "squaredcos_cap_v2"},
    {"trained_betas": [0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5], "num_train_timesteps": 8},
]
SAMPLINGS = [("ddim", 4, 0.0), ("ddim", 3, 0.6), ("lcm", 4, 0.0), ("tcd", 4, 0.0), ("tcd", 3, 0.3), ("ddim", 8, 0.0)]
TAIL = 3.654
"""where the tail of numpy's ziggurat begins"""
SEEDS = [0, 7, -1, 2**53 - 1, 2**64 - 1]
PROMPTS = [
    "",
    "a photo of a red boot on a white background",
    "A  PHOTO\tof a Blue BAG, isn't it?",
    "caf\u00e9 \u4e2d\u6587 \U0001f600 <|endoftext|> 42 !!",
    "a photo of a red boot " * 12,
]
BOOT, BAG = "a photo of a red boot on a white background", "blue bag, yellow background"
PICTURES: list[dict[str, Any]] = [
    {"prompt": BOOT, "seed": 7},
    {"prompt": BOOT, "seed": 8},
    {"prompt": BAG, "seed": 0},
    {"prompt": "a green dress", "seed": 123456789},
    {"prompt": BAG, "seed": 1, "steps": 1},
    {"prompt": BAG, "seed": 2, "steps": 8},
    {"prompt": "a small black sandal on the left", "seed": 3, "steps": 4, "eta": 0.5},
    {"prompt": BOOT, "seed": 4, "guidanceScale": 3.0, "negativePrompt": "red"},
    {"prompt": BOOT, "seed": 5, "sampler": "lcm", "steps": 4},
    {"prompt": BOOT, "seed": 6, "sampler": "tcd", "steps": 4, "eta": 0.3},
    {"prompt": BOOT, "seed": 7, "generator": "torch"},
]
TINY_PICTURES: list[dict[str, Any]] = [
    {"prompt": BOOT, "seed": 7},
    {"prompt": BAG, "seed": 8, "guidanceScale": 1.0, "steps": 5},
]
PYTHON_NAMES = {"steps": "num_inference_steps", "guidanceScale": "guidance_scale", "negativePrompt": "negative_prompt"}


def noise_cases() -> list[dict[str, Any]]:
    """Numbers of each seed, twice some."""
    cases = []
    for generator in GENERATORS:
        for seed in SEEDS:
            for count in (5, 40):
                draw = seeded_noise([seed], (count,), generator)
                cases.append({"generator": generator, "seed": str(seed), "values": [draw()[0].tolist() for _ in "12"]})
    return cases


def long_noise() -> dict[str, Any]:
    """The digest of many numbers with those of the tail as 0, and the tail: its last bits are the C library's."""
    values = seeded_noise([11], (200_000,))()[0]
    tail = np.abs(values) > TAIL
    return {
        "seed": "11",
        "count": len(values),
        "tailBegins": TAIL,
        "tail": values[tail].tolist(),
        "sha256": digest(np.where(tail, np.float32(0), values)),
    }


def digest(values: np.ndarray[Any, Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()


def timesteps_cases() -> list[dict[str, Any]]:
    """The digest of the timesteps of every number of steps, int32, one after the other."""
    cases = []
    for spacing in ("leading", "trailing", "linspace"):
        for steps in (1000, 600, 37):
            parts = [spaced_timesteps(spacing, n, steps, 1) for n in range(1, steps + 1)]
            sha256 = digest(np.concatenate(parts).astype("<i4"))
            cases.append({"spacing": spacing, "trainTimesteps": steps, "stepsOffset": 1, "sha256": sha256})
    return cases


def sampler_cases() -> list[dict[str, Any]]:
    """The last x of a UNet that gives noise; or no trajectory where the sampler refuses."""
    cases: list[dict[str, Any]] = []
    shape = (4, 3, 2)
    for config in SCHEDULES:
        schedule = NoiseSchedule.from_config(config)
        case: dict[str, Any] = {
            "config": config,
            "alphas": digest(schedule.alphas_cumprod.astype(np.float32)),
            "runs": [],
        }
        for name, steps, eta in SAMPLINGS:
            run: dict[str, Any] = {"sampler": name, "steps": steps, "eta": eta}
            case["runs"].append(run)
            noise = seeded_noise([3], shape)
            x = noise()
            try:
                sampler = make_sampler(name, schedule, steps, noise, eta=eta)
            except RcdeployError as error:
                run["refused"] = error.message
                continue
            for i in range(len(sampler.timesteps)):
                x = sampler.step(seeded_noise([100 + i], shape)(), i, x).astype(np.float32)
            run |= {"timesteps": sampler.timesteps.tolist(), "x": x.ravel().tolist()}
        cases.append(case)
    return cases


def pictures(package: Path, settings: list[dict[str, Any]]) -> list[np.ndarray[Any, Any]]:
    model = TextToImage.load(package, device="cpu", threads=1)
    drawn = []
    for one in settings:
        images, _ = model.generate(**{PYTHON_NAMES.get(key, key): value for key, value in one.items()})
        drawn.append(np.asarray(images[0]))
    return drawn


def tiny_package(folder: Path) -> None:
    """A package of a few weights with what the student has not.

    That is fp32, v prediction, a fixed batch, external weights, and a UNet that takes the guidance scale.
    """
    tokenizer = ("tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json")
    for name in tokenizer:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(STUDENT / name, folder / name)
    config = {**SD, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    write_json(folder / "scheduler/scheduler_config.json", config)
    save(folder, "text_encoder", ["embeds = Gather(table, input_ids)"], {"table": weights(617, 4)}, "embeds")
    unet = [
        "text = ReduceMean(encoder_hidden_states, second)",
        "scale = ReduceMean(timestep_cond, second)",
        "channels = Add(text, scale)",
        "shift = Unsqueeze(channels, sides)",
        "half = Mul(sample, shift)",
        "out_sample = Tanh(half)",
    ]
    save(folder, "unet", unet, {"second": ints(1), "sides": ints(2, 3)}, "out_sample")
    decoder = ["pixels = Conv(latent_sample, kernel)", "sample = Resize(pixels, , scales)"]
    constants = {"kernel": weights(3, 4, 1, 1), "scales": np.asarray([1, 1, 8, 8], np.float32)}
    save(folder, "vae_decoder", decoder, constants, "sample", external=True)
    manifest = Manifest(
        "package",
        latents={"shape": [4, 8, 8], "scaling_factor": 0.5},
        facts={
            "format": "onnx",
            "pixels_per_latent": 8,
            "size_multiple": 8,
            "guidance_embedding": 8,
            "static_size": [64, 64],
            "sampling": {"sampler": "ddim", "num_inference_steps": 3, "guidance_scale": 4.0},
        },
    )
    manifest.add_files(folder)
    manifest.write(folder)


INPUTS: dict[str, list[tuple[str, int, list[int | str]]]] = {
    "text_encoder": [("input_ids", TensorProto.INT64, [1, 32])],
    "unet": [
        ("sample", TensorProto.FLOAT, [1, 4, 8, 8]),
        ("timestep", TensorProto.INT64, []),
        ("encoder_hidden_states", TensorProto.FLOAT, [1, 32, 4]),
        ("timestep_cond", TensorProto.FLOAT, [1, 8]),
    ],
    "vae_decoder": [("latent_sample", TensorProto.FLOAT, [1, 4, 8, 8])],
}


def save(
    folder: Path,
    component: str,
    lines: list[str],
    constants: dict[str, np.ndarray[Any, Any]],
    output: str,
    external: bool = False,
) -> None:
    """Write a network of lines "output = Operator(input, ...)"."""
    nodes = []
    for line in lines:
        result, operator, inputs = re.fullmatch(r"(\w+) = (\w+)\((.*)\)", line).groups()  # type: ignore[union-attr]
        attributes = {"keepdims": 0} if operator == "ReduceMean" else {}
        nodes.append(helper.make_node(operator, inputs.split(", "), [result], **attributes))
    graph = helper.make_graph(
        nodes,
        component,
        [helper.make_tensor_value_info(*each) for each in INPUTS[component]],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    (folder / component).mkdir(parents=True, exist_ok=True)
    file = folder / component / "model.onnx"
    (folder / component / "model.onnx.data").unlink(missing_ok=True)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    options = {"save_as_external_data": True, "location": "model.onnx.data", "size_threshold": 60} if external else {}
    onnx.save_model(model, file, **options)


def weights(*shape: int) -> np.ndarray[Any, Any]:
    return np.random.Generator(np.random.Philox(key=9)).standard_normal(shape, np.float32)


def ints(*values: int) -> np.ndarray[Any, Any]:
    return np.asarray(values, np.int64)


def main() -> None:
    tokenizer = PromptTokenizer(STUDENT / "tokenizer")
    fixtures = {
        "noise": noise_cases(),
        "longNoise": long_noise(),
        "timesteps": timesteps_cases(),
        "samplers": sampler_cases(),
        "guidance": [{"scale": w, "values": guidance_embedding([w], 16)[0].tolist()} for w in (1.0, 4.0, 7.5)],
        "halves": [{"value": v, "bits": int(np.float16(v).view(np.uint16))} for v in halves()],
        "tokens": [{"prompt": prompt, "ids": tokenizer([prompt])[0].tolist()} for prompt in PROMPTS],
        "pictures": PICTURES,
        "tinyPictures": TINY_PICTURES,
    }
    (HERE / "fixtures.json").write_text(json.dumps(fixtures, separators=(",", ":")) + "\n", encoding="utf-8")
    tiny_package(HERE / "tiny")
    drawn = pictures(STUDENT, PICTURES) + pictures(HERE / "tiny", TINY_PICTURES)
    Image.fromarray(np.concatenate(drawn, axis=1)).save(HERE / "pictures.png", optimize=True)


def halves() -> list[float]:
    """float32 numbers around the edges of float16: ties, subnormal ones, the largest."""
    numbers = [
        0.0,
        1.0,
        -2.5,
        1 + 2**-11,
        1 + 3 * 2**-11,
        2**-14,
        2**-14 - 2**-25,
        2**-24,
        2**-25,
        3 * 2**-26,
        1e-9,
        65504,
        65519,
    ]
    numbers += np.random.Generator(np.random.Philox(key=5)).normal(0, 3, 20).astype(np.float32).tolist()
    return [float(np.float32(number)) for number in numbers]


if __name__ == "__main__":
    main()
