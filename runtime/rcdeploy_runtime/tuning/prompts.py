"""The texts of the images that a tuning draws."""

from __future__ import annotations

from ..limits import MAX_PROMPT_CHARACTERS
from ..package import Package

GENERIC = (
    "a photo of a red boot on a white background",
    "a bowl of fruit on a wooden table",
    "a small house beside a lake, in the evening",
)
"""for packages without captions"""
COUNT = len(GENERIC)
CAPTION_BYTES = 2**16
"""of the file of captions that are read"""


def tuning_prompts(package: Package) -> tuple[str, ...]:
    """COUNT captions that the model is used with, or generic ones. Raises RcdeployError where their file is missing."""
    if package.facts.captions is None:
        return GENERIC
    with package.file(package.facts.captions).open("rb") as file:
        lines = file.read(CAPTION_BYTES).decode("utf-8", errors="replace").splitlines()[:-1]  # the last may be cut
    captions = [line.strip()[: MAX_PROMPT_CHARACTERS // 2] for line in lines if line.strip()]
    if len(captions) < COUNT:
        return GENERIC
    return tuple(captions[i * len(captions) // COUNT] for i in range(COUNT))
