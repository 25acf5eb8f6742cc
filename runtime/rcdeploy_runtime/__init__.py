"""rcdeploy_runtime: what a device needs. Numpy, ONNX Runtime, tokenizers and pillow; never torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .errors import RcdeployError as RcdeployError
    from .text_to_image import TextToImage as TextToImage

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """TextToImage and RcdeployError, imported when first asked for: reading a manifest needs no ONNX Runtime."""
    if name == "TextToImage":
        from .text_to_image import TextToImage

        return TextToImage
    if name == "RcdeployError":
        from .errors import RcdeployError

        return RcdeployError
    raise AttributeError(f"rcdeploy_runtime has no {name!r}")
