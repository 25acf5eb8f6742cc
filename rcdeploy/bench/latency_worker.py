"""One subject on one backend, in a process of its own: `python -m rcdeploy.bench.latency_worker TASK` (JSON).

It loads, draws a first picture, says what that took, and then times one call for each line that it reads. A package is
opened as a device opens it: nothing here imports torch for one. Answers are lines of JSON on stdout; whatever libraries
print goes to stderr.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from rcdeploy_runtime.errors import RcdeployError

Call = Callable[[], object]
_TORCH = ("torch", "rcdeploy.sampling")
HEAVY = {
    "torch": _TORCH,
    "torch.compile": _TORCH,
    "onnxruntime": ("rcdeploy_runtime.text_to_image",),
    "openvino": ("rcdeploy_runtime.text_to_image", "openvino"),
    "tensorrt": ("rcdeploy_runtime.text_to_image",),
}
"""imported before the clock of loading starts"""
SHORT = 0.1
"""seconds; below it a call is made once more, untimed, right before the timed one: another process ran in between, and
what that one pushed out of the processor's caches is not this one's cost"""


def main() -> None:
    begun = time.perf_counter()
    task = json.loads(sys.argv[1])
    answers = _answers()
    try:
        for name in HEAVY[task["backend"]]:
            importlib.import_module(name)
        imported = time.perf_counter()
        model: _Torch | _Package = (_Torch if task["backend"] in ("torch", "torch.compile") else _Package)(task)
        loaded = time.perf_counter()
        model.image()
        ready = {
            "device": model.device,
            "import_seconds": imported - begun,
            "load_seconds": loaded - imported,
            "first_image_seconds": time.perf_counter() - loaded,
            "peak_memory_bytes": peak_memory(),
            **model.further_facts(),
        }
        _say(answers, ready)
        _serve(model, task, answers)
    except RcdeployError as error:
        _say(answers, {"error": error.message, "fix": error.fix})


def _serve(model: _Torch | _Package, task: dict[str, Any], answers: TextIO) -> None:
    """Reads {"part", "size": latent (height, width)} until the end of stdin; answers seconds."""
    calls: dict[str, Call] = {"image": model.image}
    last: dict[str, float] = {}
    for line in sys.stdin:
        wanted = json.loads(line)
        if line not in calls and wanted["part"] != "image":
            calls[line] = model.prepared(wanted["part"], *wanted["size"])
        call = calls["image"] if wanted["part"] == "image" else calls[line]
        if last.get(line, SHORT) < SHORT:
            call()
        begun = time.perf_counter()
        call()
        last[line] = time.perf_counter() - begun
        _say(answers, last[line])


class _Torch:
    """A diffusers folder as the distillation loads it, in fp32; or, without a folder, random weights of its configs."""

    def __init__(self, task: dict[str, Any]) -> None:
        import torch

        self.task, self.drawn = task, 0
        torch.set_num_threads(task["threads"])
        torch.set_grad_enabled(False)
        self.device = task["device"]
        if self.device == "auto":
            self.device = "cuda" if torch.cuda.is_available() else "cpu"
        if self.device != "cpu" and not (self.device.startswith("cuda") and torch.cuda.is_available()):
            raise RcdeployError(f"torch has no device {self.device!r} here", fix="Give --device cpu.")
        self._load() if task["folder"] else self._build()
        if task["backend"] == "torch.compile":
            for network in (self.unet, self.text_encoder, self.vae.decoder):
                network.compile()

    def _load(self) -> None:
        from ..diffusion_model import LatentDiffusionModel

        teacher = LatentDiffusionModel(self.task["folder"]).to(self.device)
        teacher.load("text_encoder", "unet", "vae", "tokenizer")
        self.unet, self.text_encoder, self.vae = teacher.unet, teacher.text_encoder, teacher.vae
        self.schedule, self.encode = teacher.schedule, teacher.encode_prompts

    def _build(self) -> None:
        import torch
        from diffusers import AutoencoderKL, DDIMScheduler
        from transformers import CLIPTextConfig, CLIPTextModel

        from ..diffusion_model import Condition
        from ..student.build import build_student

        configs = self.task["configs"]
        torch.manual_seed(0)
        self.unet = build_student(configs["unet"], 0).eval().to(self.device)
        self.text_encoder = CLIPTextModel(CLIPTextConfig.from_dict(configs["text_encoder"])).eval().to(self.device)
        self.vae = AutoencoderKL.from_config(configs["vae"]).eval().to(self.device)
        self.schedule = DDIMScheduler(clip_sample=False, steps_offset=1, set_alpha_to_one=False)
        self.encode = lambda prompts: Condition(self._text())

    def _text(self) -> Any:
        """The text encoder's answer to one prompt of random tokens."""
        import torch

        config = self.text_encoder.config
        ids = torch.randint(0, config.vocab_size, (1, self.task["text_length"]), device=self.device)
        return self.text_encoder(ids).last_hidden_state

    def image(self) -> None:
        """One picture, every part of it: prompts to tokens to embeddings, DDIM with guidance, decoding."""
        from ..sampling import sample_latents, starting_noise

        task, shape = self.task, (int(self.unet.config.in_channels), *self.task["latents"])
        self.drawn += 1
        condition = self.encode([prompt(self.drawn)])
        null = self.encode([""]) if task["guidance_scale"] > 1 else condition
        latents = sample_latents(
            self.unet,
            self.schedule,
            starting_noise(0, [self.drawn], shape),
            condition,
            null,
            num_inference_steps=task["num_inference_steps"],
            guidance_scale=task["guidance_scale"],
        )
        self.vae.decode(latents / self.vae.config.scaling_factor).sample.cpu()

    def prepared(self, part: str, height: int, width: int) -> Call:
        """A call of one network on inputs that are made now; height, width: of the latents."""
        import torch

        from ..diffusion_model import Condition, predict

        if part == "text_encoder":
            return self._synchronised(self._text)
        channels = int(self.unet.config.in_channels)
        if part == "vae_decoder":
            latents = torch.randn(1, channels, height, width, device=self.device)
            return self._synchronised(lambda: self.vae.decode(latents))
        rows = self.task["rows"]
        noisy = torch.randn(rows, channels, height, width, device=self.device)
        condition = Condition(self._text().repeat(rows, 1, 1))
        t = torch.full((rows,), 500, device=self.device)
        return self._synchronised(lambda: predict(self.unet, noisy, t, condition))

    def _synchronised(self, call: Call) -> Call:
        import torch

        def timed() -> None:
            call()
            if self.device != "cpu":
                torch.cuda.synchronize()

        return timed

    def further_facts(self) -> dict[str, int]:
        import torch

        return {} if self.device == "cpu" else {"peak_device_memory_bytes": torch.cuda.max_memory_allocated()}


class _Package:
    """A package, drawn from by the runtime."""

    def __init__(self, task: dict[str, Any]) -> None:
        from rcdeploy_runtime.text_to_image import TextToImage

        self.task, self.drawn, self.device = task, 0, str(task["device"])
        self.model = TextToImage.load(task["folder"], device=self.device, threads=task["threads"])

    def image(self) -> None:
        """One picture. Both prompts are new ones: the runtime remembers those it has met."""
        task, pixels = self.task, self.model.pixels_per_latent
        self.drawn += 1
        _, record = self.model.generate(
            prompt(self.drawn),
            negative_prompt=f"not number {self.drawn}",
            seed=self.drawn,
            num_inference_steps=task["num_inference_steps"],
            guidance_scale=task["guidance_scale"],
            height=task["latents"][0] * pixels,
            width=task["latents"][1] * pixels,
        )
        self.device = str(record["device"]).lower()

    def prepared(self, part: str, height: int, width: int) -> Call:
        """A call of one network on inputs that are made now; height, width: of the latents.

        The sessions are the pipeline's own: a second set would hold the weights twice.
        """
        model, rows = self.model, self.task["rows"]
        ids = model.tokenizer([prompt(0)])
        if part == "text_encoder":
            return lambda: model._text_encoder(input_ids=ids)
        random = np.random.default_rng(0)
        channels = int(model.package.manifest.latents["shape"][0])
        if part == "vae_decoder":
            latents = random.standard_normal((1, channels, height, width), np.float32)
            return lambda: model._decoder(latent_sample=latents)
        noisy = random.standard_normal((rows, channels, height, width), np.float32)
        embeds = np.repeat(model._text_encoder(input_ids=ids), rows, 0)
        t = np.asarray(500, np.int64)
        return lambda: model._unet(sample=noisy, timestep=t, encoder_hidden_states=embeds)

    def further_facts(self) -> dict[str, int]:
        return {}


def prompt(number: int) -> str:
    return f"a photo of a red boot on a white background, number {number}"


def peak_memory() -> int | None:
    """Most resident bytes of this process so far; None where the system does not tell.

    Not getrusage on Linux: its peak is handed on by the process that started this one.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        line = next((x for x in status.read_text().splitlines() if x.startswith("VmHWM:")), None)
        return int(line.split()[1]) * 1024 if line else None
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS


def _answers() -> TextIO:
    """The real stdout, for answers alone; what else is printed goes to stderr from now on."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return answers


def _say(answers: TextIO, what: object) -> None:
    answers.write(json.dumps(what) + "\n")
    answers.flush()


if __name__ == "__main__":
    main()
