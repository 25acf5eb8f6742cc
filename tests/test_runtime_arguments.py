"""The runtime's front door: every argument that is wrong is one clear error, before anything is computed."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rcdeploy_runtime import Cancelled, RcdeployError, Step, TextToImage
from rcdeploy_runtime.image_files import check_image_path, load_image
from rcdeploy_runtime.limits import MAX_IMAGE_SIDE, MAX_PROMPT_CHARACTERS

NAN = float("nan")
SHORT = {"num_inference_steps": 2, "seed": 1}
NOISE = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)


@pytest.fixture(scope="module")
def model(package: Path) -> TextToImage:
    return TextToImage.load(package, threads=1)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"prompt": 5}, r"prompt is 5 \(int\); it must be a string or a list of strings"),
    ({"prompt": None}, "prompt is None"),
    ({"prompt": b"a bag"}, "prompt is b'a bag'"),
    ({"prompt": ["a bag", 5]}, r"prompt\[1\] is 5"),
    ({"prompt": []}, "prompt has 0 texts"),
    ({"prompt": ["a"] * 1001}, "prompt has 1,001 texts"),
    ({"prompt": "x" * (MAX_PROMPT_CHARACTERS + 1)}, "10,001 characters; at most 10,000"),
    ({"prompt": "\ud800"}, "cannot be encoded|can be encoded"),
    ({"negative_prompt": None}, "negative_prompt is None"),
    ({"negative_prompt": ["bag"]}, "negative_prompt is"),
    ({"seed": 1.5}, r"seed is 1\.5 \(float\); it must be a whole number"),
    ({"seed": "7"}, "seed is '7'"),
    ({"seed": True}, "seed is True"),
    ({"seed": 2**64}, "seed is 18446744073709551616"),
    ({"seed": [1, 2]}, "seed has 2 numbers for 1 images"),
    ({"seed": [2**64]}, r"seed\[0\] is 18446744073709551616"),
    ({"num_inference_steps": 0}, "num_inference_steps is 0"),
    ({"num_inference_steps": -1}, "num_inference_steps is -1"),
    ({"num_inference_steps": 1.5}, "num_inference_steps is 1.5"),
    ({"num_inference_steps": "25"}, "num_inference_steps is '25'"),
    ({"num_inference_steps": 1000}, "num_inference_steps is 1000: this sampler takes 1 to 999 steps"),
    ({"num_inference_steps": 1001}, "takes 1 to 999 steps"),
    ({"num_inference_steps": 10**9}, "num_inference_steps is 1000000000"),
    ({"num_inference_steps": 51, "sampler": "lcm"}, "takes 1 to 50 steps"),
    ({"guidance_scale": NAN}, "guidance_scale is nan"),
    ({"guidance_scale": float("inf")}, "guidance_scale is inf"),
    ({"guidance_scale": -1.0}, "guidance_scale is -1; it must be a number from 0 to 1000"),
    ({"guidance_scale": "7.5"}, "guidance_scale is '7.5'"),
    ({"height": "64"}, "height is '64'"),
    ({"height": 0}, "height is 0"),
    ({"height": 60}, "multiples of 16"),
    ({"height": 64.0}, "height is 64.0"),
    ({"width": -64}, "width is -64"),
    ({"width": MAX_IMAGE_SIDE * 2}, "width is 16384"),
    ({"batch": 0}, "batch is 0; 1 to 1,000 are allowed"),
    ({"batch": -3}, "batch is -3"),
    ({"batch": 100_000}, "batch is 100000"),
    ({"batch": 2.0}, "batch is 2.0"),
    ({"batch": 600, "prompt": ["a", "b"]}, "1,200 images"),
    ({"sampler": "kdpm2"}, "euler_ancestral"),
    ({"sampler": ["ddim"]}, "sampler is"),
    ({"strength": 0.0}, "strength is 0; it must be a number above 0 and up to 1"),
    ({"strength": NAN}, "strength is nan"),
    ({"strength": 1.5}, "strength is 1.5"),
    ({"strength": "1"}, "strength is '1'"),
    ({"preview": "ascii"}, "preview is 'ascii'; None, 'rgb' and 'decoder'"),
    ({"preview": 1}, "preview is 1"),
    ({"mask": Image.new("L", (8, 8))}, "there is no image"),
    ({"image": "x.png"}, r"image is a str; it must be a PIL image(.|\n)*Image.open"),
    ({"image": Path("x.png")}, "image is a PosixPath"),
    ({"image": 5}, "image is a int"),
    ({"image": np.zeros((8, 8, 4), np.uint8)}, r"shape \[8, 8, 4\]"),
    ({"image": np.zeros((0, 8, 3), np.uint8)}, r"shape \[0, 8, 3\]"),
    ({"image": np.zeros((1, 3, 8, 8), np.float32)}, r"shape \[1, 3, 8, 8\]"),
    ({"image": np.full((8, 8, 3), 255.0)}, "floats from 255 to 255"),
    ({"image": np.full((8, 8, 3), NAN)}, "floats from nan"),
    ({"image": np.zeros((8, 8, 3), np.int64)}, "array of int64"),
    ({"image": np.array([["a", "b"]])}, "array of <U1"),
    ({"image": NOISE, "mask": "mask.png"}, "mask is a str"),
    ({"callback": 5}, "callback is 5"),
    ({"generator": "numpy"}, "generator is 'numpy' .*'philox' and 'torch'"),
    ({"generator": None}, "generator is None"),
    ({"generator": "torch", "image": NOISE, "mask": NOISE}, "with a mask they would not"),
    ({"eta": 1.5}, "eta is 1.5; it must be a number from 0 to 1"),
    ({"eta": NAN}, "eta is nan"),
    ({"eta": 0.5, "sampler": "euler"}, "the sampler euler has none"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG, ids=lambda x: "-".join(x) if isinstance(x, dict) else "")
def test_a_wrong_argument_is_one_clear_error(
    model: TextToImage, arguments: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model.networks.text, "condition", lambda *_: pytest.fail("prompts were encoded"))
    for name in ("encode_image", "predict", "decode"):
        monkeypatch.setattr(model.networks, name, lambda *_, name=name: pytest.fail(f"{name} was called"))
    calls = [model.generate] if "callback" in arguments else [model.generate, model.stream]
    for call in calls:  # stream raises at the call, not at the first step
        with pytest.raises(RcdeployError, match=message):
            call(**{"prompt": "a bag", **arguments})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"threads": 0}, "threads is 0; 1 to 1,024 are allowed"),
        ({"threads": -2}, "threads is -2"),
        ({"threads": "a"}, "threads is 'a'"),
        ({"threads": True}, "threads is True"),
        ({"threads": 1.5}, "threads is 1.5"),
        ({"threads": 10**6}, "threads is 1000000"),
        ({"device": None}, "device is None"),
        ({"device": 3}, "device is 3"),
        ({"package": 5}, "package is 5"),
        ({"package": None}, "package is None"),
        ({"package": "a\0b"}, "package is"),
    ],
)
def test_a_wrong_argument_of_load(package: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(RcdeployError, match=message):
        TextToImage.load(**{"package": package, **arguments})


def test_numbers_of_numpy_are_numbers(model: TextToImage) -> None:
    plain, _ = model.generate("a bag", seed=3, num_inference_steps=2, guidance_scale=2.0, height=64)
    numpy, record = model.generate(
        "a bag", seed=np.int64(3), num_inference_steps=np.int32(2), guidance_scale=np.float64(2), height=np.uint8(64)
    )
    assert np.array_equal(plain[0], numpy[0])
    json.dumps(record)


@pytest.mark.parametrize("value", [NOISE, NOISE / 255, (NOISE / 255).astype(np.float32), Image.fromarray(NOISE)])
def test_an_array_is_an_image(model: TextToImage, value: Any) -> None:
    expected, _ = model.generate("a bag", image=Image.fromarray(NOISE), **SHORT)
    images, _ = model.generate("a bag", image=value, **SHORT)
    assert np.array_equal(images[0], expected[0])


@pytest.mark.parametrize("dtype", [np.bool_, np.uint8, np.float32])
def test_an_array_is_a_mask(model: TextToImage, dtype: type) -> None:
    half = np.arange(64)[None].repeat(64, 0) >= 32
    mask = half.astype(dtype) * (255 if dtype is np.uint8 else 1) if dtype is not np.bool_ else half
    image = np.asarray(model.generate("a bag", image=NOISE, mask=mask, **SHORT)[0][0])
    assert np.array_equal(image[:, :32], NOISE[:, :32]) and not np.array_equal(image[:, 32:], NOISE[:, 32:])
    assert np.array_equal(image, model.generate("a bag", image=NOISE, mask=mask[..., None], **SHORT)[0][0])


@pytest.mark.parametrize("component", ["text_encoder", "unet", "vae_decoder", "vae_encoder"])
def test_nan_is_an_error_that_names_the_component(
    package: Path, component: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = TextToImage.load(package, threads=1)
    model.generate("a bag", image=NOISE, **SHORT)  # opens the encoder
    name = {"vae_encoder": "_vae_encoder", "text_encoder": "encoder"}.get(component, component)
    owner = model.networks.text if component == "text_encoder" else model.networks
    network = getattr(owner, name)
    monkeypatch.setattr(owner, name, lambda **inputs: network(**inputs) * np.float32(np.nan))
    with pytest.raises(RcdeployError, match=f"the {component} gave NaN"):
        model.generate("another bag", image=NOISE, **SHORT)


def test_cancelled_is_no_user_error_and_travels_between_processes() -> None:
    error = pickle.loads(pickle.dumps(Cancelled(Step(2, 5, 3.0))))
    assert error.last_step == Step(2, 5, 3.0) and not isinstance(error, RcdeployError)


def test_files_are_checked_before_anything_is_generated(package: Path, tmp_path: Path) -> None:
    def call(*arguments: str) -> str:
        command = [sys.executable, "-m", "rcdeploy_runtime", "generate", str(package), "a bag", *arguments]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 2 and "Traceback" not in done.stderr
        return done.stderr

    assert "names no image format" in call("-o", "noext")
    assert "/8" not in call("--image", "missing.png", "--steps", "8")
    assert not list(tmp_path.iterdir())


def test_damaged_and_foreign_image_files(tmp_path: Path) -> None:
    Image.fromarray(NOISE).save(tmp_path / "whole.png")
    data = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    (tmp_path / "text.png").write_text("hello")
    assert load_image(tmp_path / "whole.png").size == (64, 64)
    for name in ("cut.png", "text.png", "missing.png", "."):
        with pytest.raises(RcdeployError, match="cannot be opened as an image"):
            load_image(tmp_path / name)
    for path in ("a", "a.xyz"):
        with pytest.raises(RcdeployError, match="names no image format"):
            check_image_path(tmp_path / path)
    check_image_path(tmp_path / "new/a.PNG")
