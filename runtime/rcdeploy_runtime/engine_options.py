"""Options of TensorRT engines: memory, batch, image sizes, and the GPUs that they are for."""

from __future__ import annotations

import re
from dataclasses import dataclass

from .errors import RcdeployError

Size = tuple[int, int]
"""(height, width) in pixels"""


@dataclass(frozen=True)
class EngineOptions:
    """How engines are built. Raises RcdeployError for values that no builder could use.

    Args:
        workspace_gb: most memory that a layer may use while it is built and run.
        max_batch: images at once (the UNet gets two rows for each, for guidance).
        sizes: smallest, usual and largest image size; by default from half the size that the package's recipe trained
            at (without a recipe: the model's native size) to twice that.
        compute_capabilities: such as 8.6, 8.9: build ahead of time with TensorRT-RTX.
        hardware_compatible: engines for every GPU from Ampere on, somewhat slower.
    """

    workspace_gb: float = 4.0
    max_batch: int = 1
    sizes: tuple[Size, Size, Size] | None = None
    compute_capabilities: tuple[str, ...] = ()
    hardware_compatible: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.workspace_gb < float("inf"):
            raise RcdeployError(f"--workspace-gb {self.workspace_gb:g}: it must be more than 0")
        if self.max_batch < 1:
            raise RcdeployError(f"--max-batch {self.max_batch}: it must be 1 or more")
        for capability in self.compute_capabilities:
            if not re.fullmatch(r"\d{1,2}\.\d", capability):
                raise RcdeployError(
                    f"--compute-capability {capability!r} must look like 8.6",
                    fix="Several are separated by commas: 8.6,8.9.",
                )
        if self.sizes:
            smallest, usual, largest = self.sizes
            if not all(0 < a <= b <= c for a, b, c in zip(smallest, usual, largest, strict=True)):
                raise RcdeployError("--profile: the sizes must grow from smallest to usual to largest")


def parse_capabilities(text: str) -> tuple[str, ...]:
    """ "8.6,8.9" -> its parts."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def parse_profile(text: str) -> tuple[Size, Size, Size] | None:
    """ "256x256,512x512,768x1024" -> smallest, usual and largest (height, width); "" -> None."""
    if not text:
        return None
    sizes = [re.fullmatch(r"\s*(\d{1,5})x(\d{1,5})\s*", part) for part in text.lower().split(",")]
    matches = [(int(size[1]), int(size[2])) for size in sizes if size]
    if len(sizes) != 3 or len(matches) != 3:
        raise RcdeployError(
            f"--profile {text!r} must be three sizes HxW: smallest, usual, largest",
            fix="For example --profile 256x256,512x512,768x768.",
        )
    return matches[0], matches[1], matches[2]
