"""Inputs that represent how a model is used: captions, and UNet inputs at timesteps spread over the noise schedule."""

from __future__ import annotations

import itertools
from pathlib import Path

import torch

from rcdeploy.diffusion_model import LatentDiffusionModel
from rcdeploy.latent_cache import LatentCache
from rcdeploy.progress import Progress
from rcdeploy.prompts.readers import batches, files_of
from rcdeploy.random_streams import CALIBRATION
from rcdeploy.sampling import sample_latents, starting_noise
from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.manifest import NAME
from rcdeploy_runtime.noise_schedule import Array
from rcdeploy_runtime.sampling_defaults import SamplingDefaults

from .source import ExportSource

GENERIC_PROMPTS = ["", "a photo", "a picture of a thing on a background", "an object in front of a wall"]
"""for a diffusers folder of which no captions are known"""
MAX_CAPTIONS = 1000
CALIBRATION_SAMPLES, MEASURED_SAMPLES = 32, 8
"""UNet inputs"""
DISTINCT_PROMPTS, MAX_STEPS = 4, 6
"""of latents sampled for calibration: 24 guided steps, which at 512 x 512 take a minute. Ranges of activations need no
finished images: with eight prompts of ten steps the images of the embedded teacher's int8 package were as near to
torch's (16 images, both 3.7 grey levels)"""
MAX_CAPTION_BYTES = 64_000
"""together; so that captions stay a small part of a package"""
PIXELS_AT_ONCE = 8 * 64 * 64
"""of images sampled in one batch: small ones together take a tenth of the time that they take one by one"""


def representative_prompts(source: ExportSource, file: Path | None, count: int) -> list[str]:
    """`count` prompts of `file`, or of those that the model is known to be used with; else generic ones."""
    if file is not None:
        known = _read_captions(file)
        if not known:
            raise RcdeployError(f"--prompts {file}: it holds no caption")
    else:
        known = known_captions(source) or GENERIC_PROMPTS
    if len(known) < count:
        known = [known[i % len(known)] for i in range(count)]
    return _evenly(known, count)


def packaged_captions(source: ExportSource) -> list[str]:
    """At most MAX_CAPTIONS captions that the package carries to be evaluated with; may be empty.

    Evenly over those that the recipe evaluates with (evaluate.prompt_files), or else over those that are known.
    """
    section = source.run.recipe.get("evaluate", {}) if source.run else {}
    scored = [Path(name) for name in section.get("prompt_files", [])]
    if scored and all(file.exists() for file in scored):
        captions = [caption for file in scored for caption in _read_captions(file)]
    else:
        captions = known_captions(source)
    known = list(dict.fromkeys(" ".join(caption.split()) for caption in captions))
    known = [caption for caption in known if caption]
    captions = _evenly(known, min(MAX_CAPTIONS, len(known)))
    average = sum(len(caption.encode()) + 1 for caption in captions) / max(1, len(captions))
    return _evenly(captions, min(len(captions), int(MAX_CAPTION_BYTES / max(1.0, average))))


def known_captions(source: ExportSource) -> list[str]:
    """The captions of the run's latent cache or of its recipe, or those beside a diffusers folder; [] without any."""
    cache = _open_cache(source)
    if cache is not None:
        return list(cache.prompts)
    folder = source.teacher_folder
    recipe = source.run.recipe.get("prompts", {}) if source.run else {}
    files = [Path(name) for name in recipe.get("paired", [])]
    files = files if files and all(file.exists() for file in files) else []
    files = files or [folder / name for name in ("captions.txt", "captions.txt.gz") if (folder / name).is_file()][:1]
    return [caption for file in files for caption in _read_captions(file, recipe.get("column"))]


def calibration_inputs(
    source: ExportSource,
    model: LatentDiffusionModel,
    file: Path | None,
    sampling: SamplingDefaults,
    latent_size: tuple[int, int],
    calibrated: bool,
    progress: Progress,
) -> list[dict[str, Array]]:
    """UNet inputs of batch size 1 at timesteps that are spread evenly: noised latents with their prompts.

    Latents and prompts come from the run's latent cache where it still exists and has this size. Else the prompts are
    captions of `file`, or representative ones; their latents the model samples as it wants to be sampled (in MAX_STEPS
    at most) if ranges of activations are `calibrated` with them, and are noise if a precision is measured with them
    alone.
    """
    count = CALIBRATION_SAMPLES if calibrated else MEASURED_SAMPLES
    cache = _open_cache(source) if file is None else None
    if cache and tuple(cache.latents([0]).shape[2:]) == latent_size:
        rows = [i * len(cache) // count for i in range(count)]
        x_0 = cache.latents(rows)
        prompts = [cache.prompts[i] for i in rows]
    else:
        distinct = representative_prompts(source, file, DISTINCT_PROMPTS)
        if calibrated:
            latents = _sample(model, distinct, sampling, latent_size, progress)
        else:
            latents = starting_noise(0, range(len(distinct)), (model.latent_shape()[0], *latent_size), CALIBRATION)
        rows = [i % len(distinct) for i in range(count)]
        x_0 = latents[rows]
        prompts = [distinct[i] for i in rows]
    num_train_timesteps = int(model.schedule.config.num_train_timesteps)
    timesteps = torch.arange(count) * num_train_timesteps // count
    noise = starting_noise(1, range(count), tuple(x_0.shape[1:]), CALIBRATION)
    noisy_latents = model.schedule.add_noise(x_0, noise, timesteps)
    condition = model.encode_prompts(prompts, x_0.shape[2:]).to("cpu", torch.float32)
    condition = condition.with_guidance(sampling.guidance_scale, model.unet)
    return [
        {
            "sample": noisy_latents[i : i + 1].numpy(),
            "timestep": timesteps[i].numpy(),
            "encoder_hidden_states": condition.prompt_embeds[i : i + 1].numpy(),
            **{name: values[i : i + 1].numpy() for name, values in condition.added.items()},
        }
        for i in range(count)
    ]


def _sample(
    model: LatentDiffusionModel,
    prompts: list[str],
    sampling: SamplingDefaults,
    latent_size: tuple[int, int],
    progress: Progress,
) -> torch.Tensor:
    """Latents [n, c, h, w] of the prompts, in batches that memory can hold."""
    shape = (model.latent_shape()[0], *latent_size)
    batch_size = max(1, PIXELS_AT_ONCE // (shape[1] * shape[2] * model.pixels_per_latent**2))
    null = model.null_condition(latent_size)
    batches_of_latents = []
    for start in range(0, len(prompts), batch_size):
        progress("calibration latents", start, len(prompts))
        indices = range(start, min(start + batch_size, len(prompts)))
        batches_of_latents.append(
            sample_latents(
                model.unet,
                model.schedule,
                starting_noise(1, indices, shape, CALIBRATION),
                model.encode_prompts([prompts[i] for i in indices], latent_size),
                null,
                **vars(sampling.override(num_inference_steps=min(MAX_STEPS, sampling.num_inference_steps))),
            )
        )
    progress("calibration latents", len(prompts), len(prompts))
    return torch.cat(batches_of_latents)


def _open_cache(source: ExportSource) -> LatentCache | None:
    folder = (source.run.facts.get("cache_folder") if source.run else None) or ""
    return LatentCache.open(Path(folder)) if folder and (Path(folder) / NAME).is_file() else None


def _read_captions(source: Path, column: str | None = None) -> list[str]:
    """The first few hundred thousand captions of a file or a folder of files."""
    return list(itertools.chain.from_iterable(itertools.islice(batches(files_of(source), column), 4)))


def _evenly(values: list[str], count: int) -> list[str]:
    return [values[i * len(values) // count] for i in range(count)]
