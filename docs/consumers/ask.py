"""Asks a program what it does with a model: makes a small one of random weights, and compares its image with ours.

docs/compatibility.py asks; each program answers in a process of its own, by a script beside this one.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel

from rcdeploy.decoder.network import build_tiny, tiny_config
from rcdeploy.diffusion_model import LatentDiffusionModel
from rcdeploy.progress import no_progress
from rcdeploy.recipe_stages import Decoder
from rcdeploy.sampling import runtime_noise, sample_images
from rcdeploy.student.build import build_student
from rcdeploy.student.spec import student_config
from rcdeploy_export.export_options import ExportOptions
from rcdeploy_export.package import export_package
from rcdeploy_export.single_file import write_single_file
from rcdeploy_export.source import ExportSource
from rcdeploy_runtime.errors import RcdeployError

if TYPE_CHECKING:
    from compatibility import Row

torch.set_grad_enabled(False)
HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
NOT_RUN, NO_SINGLE_FILE = "not run", "no single file"
SAME = "draws the same"
SETTINGS = {
    "prompt": "a red shirt",
    "seed": 0,
    "num_inference_steps": 2,
    "guidance_scale": 4.0,
    "height": 64,
    "width": 64,
}


@dataclass(frozen=True)
class Consumer:
    """A program that opens models. script: in docs/consumers. form: what it opens. environment: None for this one."""

    script: str
    form: str
    environment: str | None = None

    @property
    def command(self) -> list[str] | None:
        """None where the environment was not made."""
        if self.script.endswith(".mjs"):
            return ["node"] if (ROOT / "web/dist").is_dir() else None
        if self.environment is None:
            return [sys.executable]
        python = ROOT / self.environment / "bin/python"
        return [str(python)] if python.exists() else None


CONSUMERS = {
    "Optimum": Consumer("optimum_pipeline.py", "onnx", ".venv-interop"),
    "openvino-genai": Consumer("genai_pipeline.py", "openvino"),
    "onnxruntime-web": Consumer("node.mjs", "onnx"),
    "ExecuTorch": Consumer("executorch_programs.py", "model", ".venv-executorch"),
    "Core ML converter": Consumer("coreml_converter.py", "model", ".venv-coreml"),
}
DIFFUSERS, SINGLE_FILE = "diffusers", "diffusers, single file"
FULL_SIZE = {
    "stable-diffusion.cpp, single file": "model.safetensors",
    "stable-diffusion.cpp, diffusers folder": "model",
}
"""column -> what it is given of a full-size model"""


def ask_all(row: Row, consumers: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Makes the row's model; yields (program, what it does with it), without those that cannot be asked here."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_model(row, folder / "model")
        for name in consumers:
            answer = attempt(lambda name=name: ask(name, folder, row))
            if answer != NOT_RUN:
                yield name, answer


def make_model(row: Row, folder: Path) -> None:
    source = LatentDiffusionModel(str(ROOT / "examples/teachers" / row.teacher))
    pipeline = DiffusionPipeline.from_pretrained(source.folder, torch_dtype=torch.float32)
    if row.rule or row.changes:
        config = dict(source.unet_config)
        config = student_config(row.rule, config)[0] if row.rule else config
        pipeline.unet = build_student({**config, **row.changes}, 0)
    if row.tiny_decoder:
        pipeline.vae = build_tiny(tiny_config(source.vae_config, Decoder(channels=16)), seed=1)
    pipeline.save_pretrained(folder)


def ask(name: str, folder: Path, row: Row) -> str:
    if name == DIFFUSERS:
        return drawn(folder)
    if name == SINGLE_FILE:
        return read_back(folder)
    if name in FULL_SIZE:
        return ask_full_size(name, folder / "full", row)
    consumer = CONSUMERS[name]
    command = consumer.command
    if command is None:
        return NOT_RUN
    model = folder / consumer.form
    if not model.is_dir():
        options = ExportOptions(format=consumer.form, encoder=False)
        export_package(ExportSource.open(folder / "model"), model, options, no_progress)
    answer = run_consumer([*command, str(HERE / consumer.script)], model, SETTINGS, folder / "image")
    if isinstance(answer, str):
        return answer
    return compared(answer, our_image(folder).ravel())


def ask_full_size(name: str, folder: Path, row: Row) -> str:
    """stable-diffusion.cpp's answer for SD-1.4's size."""
    python = ROOT / ".venv-sdcpp/bin/python"
    if row.teacher == "fashion_xl" or row.changes:
        return NO_SINGLE_FILE if "single file" in name else NOT_RUN
    if not python.exists():
        return NOT_RUN
    if not folder.exists():
        command = [sys.executable, str(ROOT / "tests/full_size_models.py"), str(folder.parent), row.rule or "teacher"]
        subprocess.run(command, check=True, capture_output=True, env=environment())
        (folder.parent / (row.rule or "teacher")).rename(folder)
    settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    if row.tiny_decoder:
        settings["taesd_path"] = str(folder / "decoder/diffusion_pytorch_model.safetensors")
    command = [str(python), str(HERE / "sdcpp_binding.py")]
    answer = run_consumer(command, folder / FULL_SIZE[name], settings, folder / "image")
    if isinstance(answer, str):
        return answer
    expected = folder / ("expected_tiny.rgb" if row.tiny_decoder else "expected.rgb")
    return compared(answer, np.frombuffer(expected.read_bytes(), np.uint8))


def run_consumer(command: list[str], model: Path, settings: dict[str, Any], image: Path) -> np.ndarray | str:
    """Its image [height * width * 3], or its answer when it draws none."""
    image.unlink(missing_ok=True)
    command = [*command, str(model), json.dumps(settings), str(image)]
    process = subprocess.run(command, capture_output=True, text=True, env=environment())
    if process.returncode:
        return refusal(process)
    return np.frombuffer(image.read_bytes(), np.uint8) if image.exists() else "converts"


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(str(ROOT / part) for part in ("", "export", "runtime"))}


def refusal(process: subprocess.CompletedProcess[str]) -> str:
    """What a program that has failed said last."""
    if process.returncode < 0:
        return f"crashes: signal {-process.returncode}"
    lines = [line.strip() for line in process.stderr.splitlines() if line.strip()]
    # stable-diffusion.cpp says what does not fit first, and what follows from that last
    said = [line for line in lines if "has wrong shape" in line or "not in model file" in line] or lines[-1:]
    message = said[0].rpartition(" - ")[2].partition(" in model file: got")[0] if said else "no message"
    return "refuses: " + message.replace("model.diffusion_model.", "")[:120].replace("|", "/")


def compared(image: np.ndarray, expected: np.ndarray) -> str:
    difference = int(np.abs(image.astype(int) - expected.astype(int)).max())
    return SAME if difference <= 2 else f"opens; draws otherwise (up to {difference} of 255)"


def our_image(folder: Path) -> np.ndarray:
    """By torch and this project's sampler [height, width, 3]."""
    model = LatentDiffusionModel(str(folder / "model"))
    settings: dict[str, Any] = dict(SETTINGS)
    prompt, seed = settings.pop("prompt"), settings.pop("seed")
    noise = runtime_noise(model, [seed], (settings.pop("height"), settings.pop("width")))
    image = sample_images(model, [prompt], noise, sampler="ddim", seeds=[seed], **settings)[0]
    return (image.movedim(0, -1) * 255).round().byte().numpy()


def drawn(folder: Path) -> str:
    """Whether diffusers draws what torch draws here."""
    pipeline = DiffusionPipeline.from_pretrained(folder / "model", torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    settings: dict[str, Any] = dict(SETTINGS)
    size = settings["height"], settings["width"]
    noise = runtime_noise(LatentDiffusionModel(str(folder / "model")), [settings.pop("seed")], size)
    image = pipeline(latents=noise, **settings).images[0]
    return compared(np.array(image), our_image(folder))


def read_back(folder: Path) -> str:
    """Whether diffusers' from_single_file gives the same weights."""
    model = LatentDiffusionModel(str(folder / "model"))
    file = folder / "single.safetensors"
    try:
        write_single_file(model, file)
    except RcdeployError:
        return NO_SINGLE_FILE
    config = {"config": str(folder / "model"), "subfolder": "unet"}
    loaded = UNet2DConditionModel.from_single_file(str(file), **config).state_dict()
    expected = model.unet.state_dict()
    same = loaded.keys() == expected.keys() and all(torch.equal(loaded[k], expected[k]) for k in expected)
    return "the same weights, told the config" if same else "opens; other weights"


def attempt(check: Callable[[], str]) -> str:
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            return check()
    except RcdeployError as error:
        return f"not written: {error.message}"
    except Exception as error:  # a table of what other programs do: whatever they raise is the answer
        return f"refuses: {type(error).__name__}"
