"""Load and sample any text-to-image pipeline that diffusers has, from a folder that nobody vouches for.

DiffusionPipeline.from_pretrained is not used: it runs Python files that lie in the folder. Each component is loaded by
its own class of diffusers or transformers, from .safetensors, and the pipeline is made of the components.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import ModelMixin, SchedulerMixin
from torch import Tensor
from transformers import (
    FeatureExtractionMixin,
    ImageProcessingMixin,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)

from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.limits import MAX_CONTEXT, MAX_IMAGE_SIDE

from .model_files import check_tensors
from .model_index import ModelIndex

COMPONENT_CLASSES = {
    "diffusers": (ModelMixin, SchedulerMixin),
    "transformers": (
        *(PreTrainedModel, PreTrainedTokenizerBase),
        *(ProcessorMixin, ImageProcessingMixin, FeatureExtractionMixin),
    ),
}
"""base classes of what a component may be, by library"""
CALL_ARGUMENTS = ("prompt", "num_inference_steps", "guidance_scale", "generator", "output_type")


def load_pipeline(index: ModelIndex, device: torch.device, dtype: torch.dtype) -> Any:
    """The pipeline on `device`, its networks in `dtype`, with the folder's own scheduler.

    It has no safety checker and sets no watermark. Raises RcdeployError for a class that is no text-to-image pipeline
    of diffusers or no component, and for weights that are missing, misshapen, not finite or not in .safetensors.
    """
    pipeline_class = _pipeline_class(index)
    classes = {name: _component_class(index, name) for name in index.components}
    components = {name: _load_component(index.folder, name, of, dtype) for name, of in classes.items()}
    accepted = inspect.signature(pipeline_class).parameters
    arguments = {name: value for name, value in index.settings.items() if name in accepted}
    if "add_watermarker" in accepted:
        arguments["add_watermarker"] = False
    try:
        pipeline = pipeline_class(**components, **arguments)
    except Exception as error:  # a missing component, or a config with odd values
        raise _unusable(index, "cannot be made of the folder's components", error) from error
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


def default_sampling(index: ModelIndex) -> dict[str, Any]:
    """num_inference_steps and guidance_scale by default of the pipeline's call, as far as it has numbers there.

    Raises RcdeployError for a class that is no text-to-image pipeline of diffusers.
    """
    call = inspect.signature(_pipeline_class(index).__call__).parameters
    defaults = {name: call[name].default for name in ("num_inference_steps", "guidance_scale")}
    return {name: value for name, value in defaults.items() if isinstance(value, int | float)}


def native_image_size(index: ModelIndex, pipeline: Any) -> tuple[int, int]:
    """(height, width) in pixels that the model was made for: its latent size times the VAE's pixels per latent.

    Where neither the pipeline nor its denoising network states a size: the default height and width of the call.
    """
    network = getattr(pipeline, "transformer", None) or getattr(pipeline, "unet", None)
    stated = getattr(pipeline, "default_sample_size", None) or getattr(
        getattr(network, "config", None), "sample_size", None
    )
    pixels = getattr(pipeline, "vae_scale_factor", 1)
    if stated:
        sides = stated if isinstance(stated, list | tuple) else [stated, stated]
        size: list[Any] = [side * pixels if type(side) is int else None for side in sides]
    else:
        call = inspect.signature(type(pipeline).__call__).parameters
        size = [call[name].default for name in ("height", "width") if name in call]
    if len(size) != 2 or not all(type(side) is int and 1 <= side <= MAX_IMAGE_SIDE for side in size):
        raise RcdeployError(
            f"{index.folder}: its images would have {size} pixels; allowed are 1 to {MAX_IMAGE_SIDE} a side",
            fix="Compare sample_size in its transformer's or UNet's config.json with the original.",
        )
    return size[0], size[1]


def sample(
    index: ModelIndex,
    pipeline: Any,
    size: tuple[int, int],
    prompts: Sequence[str],
    seeds: Sequence[int],
    settings: dict[str, Any],
) -> Tensor:
    """n prompts, n seeds -> images uint8 [n, 3, h, w]. Image i depends on its prompt and seed, not on its batch.

    Args:
        size: (height, width) in pixels.
        settings: num_inference_steps, guidance_scale.

    Raises:
        RcdeployError: the pipeline fails, or an image is NaN.
    """
    accepted = inspect.signature(type(pipeline).__call__).parameters
    further = {
        "height": size[0],
        "width": size[1],
        "use_resolution_binning": False,  # it would round the native size to one of a list
    }
    arguments = {name: value for name, value in further.items() if name in accepted}
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    try:
        output = pipeline(prompt=list(prompts), generator=generators, output_type="np", **settings, **arguments)
        images = torch.from_numpy(output.images).permute(0, 3, 1, 2)
    except Exception as error:  # whatever a stranger's configs make diffusers and torch raise
        raise _unusable(index, f"cannot draw {prompts[0]!r}", error) from error
    if not images.isfinite().all():
        raise RcdeployError(f"an image of {prompts[0]!r} or of the {len(prompts) - 1} prompts after it is NaN")
    return (images * 255).round().to(torch.uint8)


def _pipeline_class(index: ModelIndex) -> type:
    from diffusers.pipelines.auto_pipeline import AUTO_TEXT2IMAGE_PIPELINES_MAPPING  # imports every pipeline: seconds

    known = {found.__name__: found for found in AUTO_TEXT2IMAGE_PIPELINES_MAPPING.values()}
    found = known.get(index.pipeline)
    if found is None:
        raise RcdeployError(
            f"{index.folder}: {index.pipeline} is no text-to-image pipeline of diffusers {diffusers.__version__}",
            fix="Give a folder of a text-to-image model. A newer diffusers may know the class.",
        )
    call = inspect.signature(found.__call__).parameters
    if missing := [name for name in CALL_ARGUMENTS if name not in call]:
        raise RcdeployError(f"{index.folder}: {index.pipeline} takes no {' and no '.join(missing)}")
    return found


def _component_class(index: ModelIndex, name: str) -> type:
    library, class_name = index.components[name]
    module = diffusers if library == "diffusers" else transformers
    try:
        found = getattr(module, class_name)
    except Exception as error:  # lazy modules raise whatever a missing dependency makes them
        raise RcdeployError(
            f"{index.folder}: {library} has no class {class_name} for {name}: {error}",
            fix="Compare model_index.json with the original. A newer version may know the class.",
        ) from error
    if not isinstance(found, type) or not issubclass(found, COMPONENT_CLASSES[library]):
        raise RcdeployError(
            f"{index.folder}: {name} is of the class {class_name} of {library}, which is no network, no scheduler and "
            "no tokenizer, or needs a package that is not installed",
            fix="Compare model_index.json with the original.",
        )
    return found


def _load_component(folder: Path, name: str, model_class: Any, dtype: torch.dtype) -> Any:
    if issubclass(model_class, PreTrainedTokenizerBase):
        _check_sentencepiece(folder / name)
    options: dict[str, Any] = {"local_files_only": True}
    is_network = issubclass(model_class, ModelMixin | PreTrainedModel)
    if is_network:
        options |= {"use_safetensors": True, "output_loading_info": True, "torch_dtype": dtype}
    if not issubclass(model_class, ModelMixin | SchedulerMixin):
        options["trust_remote_code"] = False
    if issubclass(model_class, PreTrainedModel):  # its error would not name misshapen tensors
        options |= {"ignore_mismatched_sizes": True, "dtype": options.pop("torch_dtype")}
    try:
        loaded = model_class.from_pretrained(folder / name, **options)
    except Exception as error:  # a config with odd values makes the libraries raise whatever they like
        raise RcdeployError(
            f"the {name} cannot be loaded from {folder}: {type(error).__name__}: {str(error)[:500]}",
            fix="Weights must be .safetensors: pickled .bin and .ckpt files are never opened.",
        ) from error
    if not is_network:
        return _checked_tokenizer(folder, name, loaded)
    network, info = loaded
    # heads and decoders that a text encoder leaves out stand in many files
    check_tensors(folder, name, info, may_have_more=True)
    for tensor_name, tensor in network.state_dict().items():
        if not tensor.isfinite().all():
            raise RcdeployError(
                f"{folder}: the {name} has NaN or infinite weights: {tensor_name}", fix="Copy it again."
            )
    return network.requires_grad_(False).eval()


def _check_sentencepiece(folder: Path) -> None:
    """Raises RcdeployError where transformers would ask for a package that does not help."""
    models = sorted(folder.glob("*.model"))
    if models and not (folder / "tokenizer.json").is_file() and find_spec("sentencepiece") is None:
        raise RcdeployError(
            f"{models[0]} is a SentencePiece model, which needs the package sentencepiece",
            fix="pip install sentencepiece protobuf",
        )


def _checked_tokenizer(folder: Path, name: str, loaded: Any) -> Any:
    """Raises RcdeployError for CLIP's without a length: it pads to model_max_length; pipelines give all others one."""
    if isinstance(loaded, PreTrainedTokenizerBase) and "CLIP" in type(loaded).__name__:
        length = loaded.model_max_length
        if type(length) is not int or not 1 <= length <= MAX_CONTEXT:
            raise RcdeployError(
                f"{folder / name}: model_max_length is {length!r}; allowed are 1 to {MAX_CONTEXT:,}",
                fix="Copy tokenizer_config.json from the model again.",
            )
    return loaded


def _unusable(index: ModelIndex, what: str, error: Exception) -> RcdeployError:
    return RcdeployError(
        f"{index.folder}: the {index.pipeline} {what}: {type(error).__name__}: {str(error)[:500]}",
        fix="Compare the folder's configs with the original's; if memory is short, give a smaller --batch-size.",
    )
