"""What the Python runtime computes, for the tests of web/: noise, timesteps, samplers, tokens, and pictures.

    python web/tests/make_fixtures.py         # writes web/tests/fixtures.json and web/tests/pictures.png

Pictures are drawn from examples/students/fashion, side by side in one file.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Mapping, Sequence
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
    {"prompt": BAG, "seed": 9, "width": 96},
]
TINY_PICTURES: list[dict[str, Any]] = [
    {"prompt": BOOT, "seed": 7},
    {"prompt": BAG, "seed": 8, "guidanceScale": 1.0, "steps": 5},
]
TINY_SDXL_PICTURES: list[dict[str, Any]] = [
    {"prompt": BOOT, "seed": 7, "steps": 3},
    {"prompt": BAG, "seed": 8, "steps": 2, "negativePrompt": "red", "guidanceScale": 2.0},
]
WHOLE = ("input_ids", "timestep")
"""inputs of whole numbers"""
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
    unet = [
        "text = ReduceMean(encoder_hidden_states, second)",
        "scale = ReduceMean(timestep_cond, second)",
        "channels = Add(text, scale)",
        "shift = Unsqueeze(channels, sides)",
        "half = Mul(sample, shift)",
        "out_sample = Tanh(half)",
    ]
    inputs = {"sample": [1, 4, 8, 8], "timestep": [], "encoder_hidden_states": [1, 32, 4], "timestep_cond": [1, 8]}
    embeds = ["embeds = Gather(table, input_ids)"]
    save(folder, "text_encoder", {"input_ids": [1, 32]}, embeds, {"table": weights(617, 4)}, ["embeds"])
    save(folder, "unet", inputs, unet, {"second": ints(1), "sides": ints(2, 3)}, ["out_sample"])
    sampling = {"sampler": "ddim", "num_inference_steps": 3, "guidance_scale": 4.0}
    finish(folder, ["tokenizer"], {"guidance_embedding": 8, "sampling": sampling})


def tiny_sdxl_package(folder: Path) -> None:
    """A package of SDXL's shape: two text encoders, pooled text, image sizes, zeros as the null condition."""
    unet = [
        "text = ReduceMean(encoder_hidden_states, second)",
        "mixed = MatMul(text, mix)",
        "sizes = MatMul(time_ids, small)",
        "pooled = Add(text_embeds, sizes)",
        "channels = Add(mixed, pooled)",
        "shift = Unsqueeze(channels, sides)",
        "half = Mul(sample, shift)",
        "out_sample = Tanh(half)",
    ]
    inputs: dict[str, list[int | str]] = {
        "sample": ["n", 4, 8, 8],
        "timestep": [],
        "encoder_hidden_states": ["n", 32, 8],
        "text_embeds": ["n", 4],
        "time_ids": ["n", 6],
    }
    constants = {"second": ints(1), "sides": ints(2, 3), "mix": weights(8, 4), "small": weights(6, 4) / 100}
    first = ["hidden = Gather(table, input_ids)", "pooled = ReduceMean(hidden, second)"]
    second = ["hidden = Gather(table, input_ids)", "text_embeds = ReduceMean(hidden, second)"]
    table = {"table": weights(617, 4), "second": ints(1)}
    save(folder, "text_encoder", {"input_ids": ["n", 32]}, first, table, ["pooled", "hidden"])
    table = {"table": weights(617, 4) * 2, "second": ints(1)}
    save(folder, "text_encoder_2", {"input_ids": ["n", 32]}, second, table, ["text_embeds", "hidden"])
    save(folder, "unet", inputs, unet, constants, ["out_sample"])
    sdxl = {"hidden_states": ["hidden", "hidden"], "zeros_for_empty_prompt": True}
    finish(folder, ["tokenizer", "tokenizer_2"], {"sdxl": sdxl})


def finish(folder: Path, tokenizers: list[str], facts: dict[str, Any]) -> None:
    """Write a decoder with external weights, tokenizers, scheduler and manifest."""
    decoder = ["pixels = Conv(latent_sample, kernel)", "sample = Resize(pixels, , scales)"]
    constants = {"kernel": weights(3, 4, 1, 1), "scales": np.asarray([1, 1, 8, 8], np.float32)}
    save(folder, "vae_decoder", {"latent_sample": [1, 4, 8, 8]}, decoder, constants, ["sample"], external=True)
    for tokenizer in tokenizers:
        (folder / tokenizer).mkdir(parents=True, exist_ok=True)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(STUDENT / "tokenizer" / name, folder / tokenizer / name)
    config = {**SD, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    write_json(folder / "scheduler/scheduler_config.json", config)
    sizes = {"pixels_per_latent": 8, "size_multiple": 8, "static_size": [64, 64]}
    latents = {"shape": [4, 8, 8], "scaling_factor": 0.5}
    manifest = Manifest("package", latents=latents, facts={"format": "onnx", **sizes, **facts})
    manifest.add_files(folder)
    manifest.write(folder)


def save(
    folder: Path,
    component: str,
    inputs: Mapping[str, Sequence[int | str]],
    lines: list[str],
    constants: dict[str, np.ndarray[Any, Any]],
    outputs: list[str],
    external: bool = False,
) -> None:
    """Write a network of lines "output = Operator(input, ...)"."""
    nodes = []
    for line in lines:
        result, operator, arguments = re.fullmatch(r"(\w+) = (\w+)\((.*)\)", line).groups()  # type: ignore[union-attr]
        attributes = {"keepdims": 0} if operator == "ReduceMean" else {}
        nodes.append(helper.make_node(operator, arguments.split(", "), [result], **attributes))
    kinds = {name: TensorProto.INT64 if name in WHOLE else TensorProto.FLOAT for name in inputs}
    graph = helper.make_graph(
        nodes,
        component,
        [helper.make_tensor_value_info(name, kinds[name], shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, None) for output in outputs],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    (folder / component).mkdir(parents=True, exist_ok=True)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    # 60: counted with Python's own bytes, so that the kernel lies outside and the scales inside
    options = {"save_as_external_data": True, "location": "model.onnx.data", "size_threshold": 60} if external else {}
    (folder / component / "model.onnx.data").unlink(missing_ok=True)
    onnx.save_model(model, folder / component / "model.onnx", **options)


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
        "tinySdxlPictures": TINY_SDXL_PICTURES,
    }
    (HERE / "fixtures.json").write_text(json.dumps(fixtures, separators=(",", ":")) + "\n", encoding="utf-8")
    tiny_package(HERE / "tiny")
    tiny_sdxl_package(HERE / "tiny_sdxl")
    drawn = pictures(STUDENT, PICTURES) + pictures(HERE / "tiny", TINY_PICTURES)
    drawn += pictures(HERE / "tiny_sdxl", TINY_SDXL_PICTURES)
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
