"""Times one model on one backend in a process of its own: `python -m rcdeploy.bench.latency_worker TASK` (JSON).

It loads the model, makes a first image, replies with the time that took, and then times one call for each line that it
reads. A package is loaded as a device loads it: nothing here imports torch for one. Replies are lines of JSON on
stdout; what libraries print goes to stderr.
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
_TORCH_IMPORTS = ("torch", "rcdeploy.sampling")
IMPORTS = {
    "torch": _TORCH_IMPORTS,
    "torch.compile": _TORCH_IMPORTS,
    "onnxruntime": ("rcdeploy_runtime.text_to_image", "rcdeploy_runtime.onnx_session"),
    "openvino": ("rcdeploy_runtime.text_to_image", "openvino"),
    "tensorrt": ("rcdeploy_runtime.text_to_image",),
    "executorch": ("rcdeploy_runtime.text_to_image", "rcdeploy_runtime.executorch_session"),
}
"""modules by backend, imported before loading is timed"""
SHORT_CALL_SECONDS = 0.1
"""below it a call is made once more, untimed, right before the timed one: another process ran in between, and what that
one pushed out of the processor's caches is not this one's cost"""
TIMESTEP = 500


def main() -> None:
    started = time.perf_counter()
    task = json.loads(sys.argv[1])
    replies = _reply_stream()
    try:
        for name in IMPORTS[task["backend"]]:
            importlib.import_module(name)
        imported = time.perf_counter()
        model: _TorchModel | _PackageModel
        model = _TorchModel(task) if task["backend"] in ("torch", "torch.compile") else _PackageModel(task)
        loaded = time.perf_counter()
        model.image()
        ready = {
            "device": model.device,
            "import_seconds": imported - started,
            "load_seconds": loaded - imported,
            "first_image_seconds": time.perf_counter() - loaded,
            "peak_memory_bytes": peak_memory(),
            **model.device_facts(),
        }
        _reply(replies, ready)
        _serve(model, replies)
    except RcdeployError as error:
        _reply(replies, {"error": error.to_json()})


def _serve(model: _TorchModel | _PackageModel, replies: TextIO) -> None:
    """Reads {"component", "latent_size": (height, width)} until the end of stdin; replies with seconds."""
    calls: dict[str, Call] = {}
    previous: dict[str, float] = {}
    for request in sys.stdin:
        if request not in calls:
            component, latent_size = (json.loads(request)[key] for key in ("component", "latent_size"))
            calls[request] = model.image if component == "image" else model.prepare(component, *latent_size)
        if previous.get(request, SHORT_CALL_SECONDS) < SHORT_CALL_SECONDS:
            calls[request]()
        started = time.perf_counter()
        calls[request]()
        previous[request] = time.perf_counter() - started
        _reply(replies, previous[request])


class _TorchModel:
    """A diffusers folder in fp32, or in the task's "precision" (the VAE in fp32 all the same); or, without a folder,
    random weights for the task's configs, in fp32."""

    def __init__(self, task: dict[str, Any]) -> None:
        import torch

        self.task = task
        self.images_made = 0
        dtypes = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
        self.dtype = dtypes[task.get("precision", "fp32")]
        torch.set_num_threads(task["threads"])
        torch.set_grad_enabled(False)
        self.device = task["device"]
        if self.device == "auto":
            self.device = "cuda" if torch.cuda.is_available() else "cpu"
        if self.device != "cpu" and not (self.device.startswith("cuda") and torch.cuda.is_available()):
            raise RcdeployError(f"torch has no device {self.device!r} here", fix="Give --device cpu.")
        if task["folder"]:
            self._load()
        else:
            self._build()
        if task["backend"] == "torch.compile":
            for network in (self.unet, *self.text_encoders, self.vae.decoder):
                network.compile()

    def _load(self) -> None:
        from ..diffusion_model import LatentDiffusionModel

        model = LatentDiffusionModel(self.task["folder"], dtype=self.dtype).to(self.device)
        model.load(*(name for name in model.components if name != "scheduler"))
        self.unet = model.unet
        self.text_encoders = [getattr(model, name) for name in model.components if name.startswith("text_encoder")]
        self.vae = model.vae
        self.schedule = model.schedule
        self.encode: Callable[[list[str]], Any] = model.encode_prompts

    def _build(self) -> None:
        import torch
        from diffusers import DDIMScheduler

        from ..student.build import build_student
        from ..text_encoding import text_encoders
        from ..vae import vae_from_config

        configs = self.task["configs"]
        torch.manual_seed(0)
        self.unet = build_student(configs["unet"], 0).eval().to(self.device)
        self.text_encoders = list(text_encoders(configs).eval().to(self.device))
        self.vae = vae_from_config(configs["vae"]).eval().to(self.device)
        self.schedule = DDIMScheduler(clip_sample=False, steps_offset=1, set_alpha_to_one=False)
        self.encode = lambda _prompts: self._random_condition(1)

    def _encode_random_tokens(self) -> None:
        import torch

        for encoder in self.text_encoders:
            ids = torch.randint(0, encoder.config.vocab_size, (1, self.task["text_length"]), device=self.device)
            encoder(ids)

    def _random_condition(self, batch_size: int) -> Any:
        """The time of a text encoder's call, and a condition [batch_size, text_length, width] of random numbers."""
        import torch

        from ..condition import Condition, added_shapes

        self._encode_random_tokens()
        config = self.unet.config
        shape = (batch_size, self.task["text_length"], config.cross_attention_dim)
        options: dict[str, Any] = {"device": self.device, "dtype": self.dtype}
        added = {k: torch.randn(*v, **options) for k, v in added_shapes(config, batch_size).items()}
        return Condition(torch.randn(*shape, **options), added)

    def image(self) -> None:
        """Make one image in full: tokenizer, text encoder, sampling, decoder."""
        from ..sampling import sample_latents, starting_noise

        task = self.task
        shape = (int(self.unet.config.in_channels), *task["latent_size"])
        self.images_made += 1
        condition = self.encode([prompt(self.images_made)])
        null = self.encode([""]) if task["sampling"]["guidance_scale"] > 1 else condition
        latents = sample_latents(
            self.unet,
            self.schedule,
            starting_noise(0, [self.images_made], shape),
            condition,
            null,
            **task["sampling"],
        )
        self.vae.decode(latents / self.vae.config.scaling_factor).sample.cpu()

    def prepare(self, component: str, height: int, width: int) -> Call:
        """A call of one network on inputs that are made now; height, width: of the latents."""
        import torch

        from ..condition import predict

        if component == "text_encoder":
            return self._synchronised(self._encode_random_tokens)
        channels = int(self.unet.config.in_channels)
        if component == "vae_decoder":
            latents = torch.randn(1, channels, height, width, device=self.device)
            return self._synchronised(lambda: self.vae.decode(latents))
        batch_size = self.task["unet_batch_size"]
        noisy_latents = torch.randn(batch_size, channels, height, width, device=self.device, dtype=self.dtype)
        condition = self._random_condition(batch_size)
        timesteps = torch.full((batch_size,), TIMESTEP, device=self.device)
        return self._synchronised(lambda: predict(self.unet, noisy_latents, timesteps, condition))

    def _synchronised(self, call: Call) -> Call:
        import torch

        def synchronised() -> None:
            call()
            if self.device != "cpu":
                torch.cuda.synchronize()

        return synchronised

    def device_facts(self) -> dict[str, int]:
        import torch

        return {} if self.device == "cpu" else {"peak_device_memory_bytes": torch.cuda.max_memory_allocated()}


class _PackageModel:
    """A package in the runtime."""

    def __init__(self, task: dict[str, Any]) -> None:
        from rcdeploy_runtime.text_to_image import TextToImage

        self.task = task
        self.images_made = 0
        self.device = str(task["device"])
        self.model = TextToImage.load(task["folder"], device=self.device, threads=task["threads"], tuned=False)

    def image(self) -> None:
        """Make one image. Both prompts are new ones, because the runtime caches embeddings."""
        task = self.task
        pixels = self.model.pixels_per_latent
        self.images_made += 1
        _, record = self.model.generate(
            prompt(self.images_made),
            negative_prompt="" if self.model.networks.guidance_width else f"not number {self.images_made}",
            seed=self.images_made,
            **task["sampling"],
            height=task["latent_size"][0] * pixels,
            width=task["latent_size"][1] * pixels,
        )
        self.device = str(record["device"]).lower()

    def prepare(self, component: str, height: int, width: int) -> Call:
        """A call of one network on inputs that are made now; height, width: of the latents.

        The sessions are the pipeline's own: a second set would hold the weights twice.
        """
        networks = self.model.networks
        batch_size = self.task["unet_batch_size"]
        if component == "text_encoder":
            return lambda: networks.text.encode(prompt(0))
        random = np.random.default_rng(0)
        channels = self.model.package.latents.shape[0]
        if component == "vae_decoder":
            latents = random.standard_normal((1, channels, height, width), np.float32)
            return lambda: networks.vae_decoder(latent_sample=latents)
        noisy_latents = random.standard_normal((batch_size, channels, height, width), np.float32)
        condition = networks.text.condition([prompt(0)] * batch_size)
        return lambda: networks.predict(noisy_latents, TIMESTEP, condition, None)

    def device_facts(self) -> dict[str, int]:
        return {}


def prompt(number: int) -> str:
    return f"a photo of a red boot on a white background, number {number}"


def peak_memory() -> int | None:
    """Peak resident bytes of this process so far; None where the system does not report it.

    Not getrusage on Linux: a process inherits its peak from the one that started it.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        peak = next((x for x in status.read_text().splitlines() if x.startswith("VmHWM:")), None)
        return int(peak.split()[1]) * 1024 if peak else None
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS


def _reply_stream() -> TextIO:
    """The real stdout, for replies alone; what else is printed goes to stderr from now on."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return replies


def _reply(replies: TextIO, reply: object) -> None:
    replies.write(json.dumps(reply) + "\n")
    replies.flush()


if __name__ == "__main__":
    main()
