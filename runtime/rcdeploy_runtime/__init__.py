"""rcdeploy_runtime: generates images from packages. Numpy, ONNX Runtime, tokenizers and pillow; never torch."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .errors import RcdeployError as RcdeployError
    from .generation import Cancelled as Cancelled
    from .generation import Result as Result
    from .generation import Step as Step
    from .text_to_image import TextToImage as TextToImage

__version__ = "0.1.0"

_MODULES = {
    "Cancelled": "generation",
    "RcdeployError": "errors",
    "Result": "generation",
    "Step": "generation",
    "TextToImage": "text_to_image",
}


def __getattr__(name: str) -> Any:
    """Public names are imported at their first use: reading a manifest needs neither numpy nor pillow."""
    if name not in _MODULES:
        raise AttributeError(f"rcdeploy_runtime has no {name!r}")
    return getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
