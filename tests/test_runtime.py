"""The runtime as an application embeds it."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers import AutoTokenizer

from rcdeploy_runtime import Cancelled, RcdeployError, Result, Step, TextToImage
from rcdeploy_runtime.samplers import SAMPLERS
from rcdeploy_runtime.sessions import Batched
from rcdeploy_runtime.tokenizer import PromptTokenizer

SHORT = {"num_inference_steps": 3, "guidance_scale": 3.0}


@pytest.fixture(scope="module")
def model(package: Path) -> TextToImage:
    return TextToImage.load(package, threads=1)


def pixels(images: list[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(i) for i in images])


def test_it_generates_where_torch_cannot_be_imported(package: Path, tmp_path: Path) -> None:
    """In a process of its own in which torch, transformers and diffusers do not exist."""
    program = f"""
import sys, time
for name in ("torch", "transformers", "diffusers", "onnx", "rcdeploy"):
    sys.modules[name] = None
begun = time.perf_counter()
import rcdeploy_runtime
from rcdeploy_runtime import TextToImage
seconds = time.perf_counter() - begun
images, record = TextToImage.load({str(package)!r}).generate("a red bag", seed=1, num_inference_steps=2)
images[0].save({str(tmp_path / "bag.png")!r})
print(seconds)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert Image.open(tmp_path / "bag.png").size == (64, 64)


def test_command_of_a_device(package: Path, tmp_path: Path) -> None:
    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", "rcdeploy_runtime", *arguments], capture_output=True, text=True)

    done = call(
        "generate", str(package), "a bag", "-o", "a/b.png", "--steps", "2", "--seed", "4", "--batch", "2", "--json"
    )
    record = json.loads(done.stdout)
    assert done.returncode == 0 and record["seeds"] == [4, 5] and record["num_inference_steps"] == 2
    assert [Path(f).is_file() for f in record["files"]] == [True, True]
    wrong = call("generate", str(package), "a bag", "--sampler", "kdpm2")
    assert wrong.returncode == 2 and "euler_ancestral" in wrong.stderr and "Traceback" not in wrong.stderr


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_same_seed_is_the_same_image_in_any_batch(model: TextToImage, sampler: str) -> None:
    settings = {**SHORT, "sampler": sampler}
    three, record = model.generate(["a bag", "a red coat", "a shoe"], seed=10, **settings)
    assert record["seeds"] == [10, 11, 12]
    alone, _ = model.generate("a red coat", seed=11, **settings)
    assert np.abs(pixels(alone)[0].astype(int) - pixels(three)[1]).max() <= 1
    listed, record = model.generate(["a bag", "a red coat"], seed=[5, 11], **settings)
    assert record["seeds"] == [5, 11] and np.abs(pixels(alone)[0].astype(int) - pixels(listed)[1]).max() <= 1
    other, _ = model.generate("a red coat", seed=12, **settings)
    assert not np.array_equal(pixels(alone), pixels(other))


def test_a_random_seed_is_recorded(model: TextToImage) -> None:
    images, record = model.generate("a bag", **SHORT)
    again, _ = model.generate("a bag", seed=record["seeds"][0], **SHORT)
    assert np.array_equal(pixels(images), pixels(again))
    assert set(record["seconds"]) == {"text", "unet", "decode", "all"}


def test_threads_share_one_model(model: TextToImage) -> None:
    prompts = [f"a {c} bag" for c in ("red", "blue", "green", "black")]
    expected = [pixels(model.generate(p, seed=i, **SHORT)[0]) for i, p in enumerate(prompts)]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda x: pixels(model.generate(x[1], seed=x[0], **SHORT)[0]), enumerate(prompts)))
    assert all(np.array_equal(a, b) for a, b in zip(expected, results, strict=True))


def test_stream_shows_progress_and_previews(model: TextToImage) -> None:
    *steps, result = model.stream("a bag", seed=1, preview="rgb", **SHORT)
    assert isinstance(result, Result) and all(isinstance(s, Step) for s in steps)
    assert [(s.completed, s.total) for s in steps] == [(1, 3), (2, 3), (3, 3)]
    assert [s.previews[0].size for s in steps] == [(8, 8)] * 3 and result.images[0].size == (64, 64)
    by_decoder = next(model.stream("a bag", seed=1, preview="decoder", **SHORT))
    assert by_decoder.previews[0].size == (64, 64)
    assert next(model.stream("a bag", seed=1, **SHORT)).previews == ()
    images, record = model.generate("a bag", seed=1, **SHORT)
    assert np.array_equal(pixels(images), pixels(result.images))
    assert record.keys() == result.record.keys()


def test_the_cheap_preview_is_like_the_image(model: TextToImage) -> None:
    *_, step, result = model.stream("a bag", seed=1, preview="rgb", **SHORT)
    small = np.asarray(result.images[0].resize((8, 8), Image.Resampling.BOX), float)
    error = np.abs(np.asarray(step.previews[0], float) - small).mean()
    assert error < np.abs(small - small.mean((0, 1))).mean() + 5  # no worse than its mean colour


def test_callback_cancels(model: TextToImage) -> None:
    steps = []
    with pytest.raises(Cancelled, match="after step 2 of 3") as caught:
        model.generate("a bag", callback=lambda s: steps.append(s.completed) or s.completed < 2, **SHORT)
    assert caught.value.last_step.completed == 2 and steps == [1, 2]
    images, _ = model.generate("a bag", callback=lambda s: None, **SHORT)  # only False cancels
    assert len(images) == 1


def batch_sizes(model: TextToImage, network: str, name: str, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that grows by the length of the input `name` at each call of one of the model's networks."""
    sizes = []
    owner = model.networks.text if network == "encoder" else model.networks
    original = getattr(owner, network)

    def counted(**inputs: np.ndarray) -> np.ndarray:
        sizes.append(len(inputs[name]))
        return original(**inputs)

    monkeypatch.setattr(owner, network, counted)
    return sizes


def test_guidance_of_one_skips_the_null_branch(model: TextToImage, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = batch_sizes(model, "unet", "sample", monkeypatch)
    model.generate("a bag", num_inference_steps=2, guidance_scale=1.0)
    model.generate("a bag", num_inference_steps=2, guidance_scale=2.0)
    assert sizes == [1, 1, 2, 2]


def test_prompts_are_encoded_once(model: TextToImage, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = batch_sizes(model, "encoder", "input_ids", monkeypatch)
    model.networks.text._known.clear()
    for _ in range(2):
        model.generate("a dress of black", batch=2, **SHORT)
    assert sizes == [1, 1]  # the prompt and the null prompt


def test_image_to_image_keeps_more_at_less_strength(model: TextToImage) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).resize((80, 50))
    visits = {}
    for strength in (0.2, 0.6, 1.0):
        steps = list(model.stream("a bag", seed=1, image=image, strength=strength, num_inference_steps=10))
        visits[strength] = len(steps) - 1
    assert visits == {0.2: 2, 0.6: 6, 1.0: 10}


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_inpainting_leaves_the_rest_alone(model: TextToImage, sampler: str) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    mask = Image.fromarray(np.repeat((np.arange(64)[None] >= 40) * np.uint8(255), 64, 0))
    result = pixels(model.generate("a bag", seed=1, image=image, mask=mask, sampler=sampler, **SHORT)[0])[0]
    assert np.array_equal(result[:, :40], np.asarray(image)[:, :40])
    assert not np.array_equal(result[:, 40:], np.asarray(image)[:, 40:])


def test_tokens_are_those_of_transformers(package: Path) -> None:
    ours, theirs = PromptTokenizer(package / "tokenizer"), AutoTokenizer.from_pretrained(package / "tokenizer")
    prompts = ["", "a red bag", "Ünïcode, émoji 🎉 & CAPS", "a  b\tc\n", "x" * 500, "<|endoftext|> a bag"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ids = ours(prompts)
    expected = theirs(prompts, padding="max_length", truncation=True, max_length=ours.context).input_ids
    assert ids.tolist() == expected


def test_a_prompt_that_is_too_long_is_cut_with_a_warning(model: TextToImage) -> None:
    with pytest.warns(UserWarning, match=r"more than 16 tokens.*zzz"):
        model.generate("a bag " * 20 + "zzz", **SHORT)


def test_other_sizes(model: TextToImage) -> None:
    images, record = model.generate("a bag", height=64, width=128, **SHORT)
    assert images[0].size == (128, 64) and (record["height"], record["width"]) == (64, 128)


def test_an_unknown_device_is_refused(package: Path) -> None:
    with pytest.raises(RcdeployError, match="device is 'tpu'"):
        TextToImage.load(package, device="tpu")
    with pytest.raises(RcdeployError, match="no CUDAExecutionProvider"):
        TextToImage.load(package, device="cuda")


def test_a_fixed_batch_size_gets_parts() -> None:
    class Doubling:
        batch_size = 2
        device = "cpu"

        def run(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
            assert len(inputs["x"]) == 2 and inputs["t"].shape == ()
            return inputs["x"] * 2

    batched = Batched(Doubling(), ("x",))
    for n in (1, 2, 3, 5):
        x = np.arange(n, dtype=np.float32)[:, None]
        assert np.array_equal(batched(x=x, t=np.asarray(1)), x * 2)
