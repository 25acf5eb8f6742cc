"""Prompts to the UNet's condition: one text encoder, or SDXL's two with pooled text and image sizes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from .errors import RcdeployError
from .noise_schedule import Array
from .package import SECOND_TOKENIZER, SHARED_FILES, Package
from .sessions import Batched
from .tokenizer import PromptTokenizer

MAX_REMEMBERED_PROMPTS = 256
POOLED = "text_embeds"
"""SDXL: an output of the second text encoder, and an input of the UNet"""


@dataclass(frozen=True)
class Condition:
    """embeds: [n, context, width]. pooled: SDXL's [n, width], else None."""

    embeds: Array
    pooled: Array | None = None

    def added_inputs(self, height: int, width: int) -> dict[str, Array]:
        """The UNet's further inputs for images of height x width pixels, neither cropped nor resized."""
        if self.pooled is None:
            return {}
        sizes = np.asarray([[height, width, 0, 0, height, width]] * len(self.pooled), np.float32)
        return {POOLED: self.pooled, "time_ids": sizes}


class TextEncoding:
    """The tokenizers and text encoders of a package. Known prompts are remembered. May be used from several threads."""

    def __init__(self, package: Package, open_network: Callable[[str], Batched]) -> None:
        """open_network: loads the network of a component."""
        self._sdxl = package.facts.sdxl
        for name in (*SHARED_FILES, *(SECOND_TOKENIZER if self._sdxl else ())):
            package.file(name)
        self.tokenizer = PromptTokenizer(package.folder / "tokenizer")
        self.encoder = open_network("text_encoder")
        self.second = None
        if self._sdxl:
            self.second = PromptTokenizer(package.folder / "tokenizer_2"), open_network("text_encoder_2")
        self._known: OrderedDict[str, tuple[Array, Array | None]] = OrderedDict()
        self._lock = threading.Lock()

    def condition(self, prompts: Sequence[str], negative: Sequence[str] = ()) -> Condition:
        """The rows of `negative`, then those of `prompts`. An empty negative prompt is the null condition."""
        with self._lock:
            known = {p: self._known[p] for p in (*negative, *prompts) if p in self._known}
        new = [p for p in dict.fromkeys((*negative, *prompts)) if p not in known]
        if new:
            # one by one: a prompt's embedding then does not depend on those beside it, to the last bit
            encoded = {p: self.encode(p) for p in new}
            known |= encoded
            with self._lock:
                self._known.update(encoded)
                while len(self._known) > MAX_REMEMBERED_PROMPTS:
                    self._known.popitem(last=False)
        zero_null = self._sdxl is not None and self._sdxl.zeros_for_empty_prompt
        nothing = [zero_null and not p for p in negative] + [False] * len(prompts)
        embeds: list[Array] = []
        pooled: list[Array] = []
        for prompt, zero in zip((*negative, *prompts), nothing, strict=True):
            for parts, part in zip((embeds, pooled), known[prompt], strict=True):
                if part is not None:
                    parts.append(np.zeros_like(part) if zero else part)
        return Condition(np.stack(embeds), np.stack(pooled) if pooled else None)

    def encode(self, prompt: str) -> tuple[Array, Array | None]:
        """-> embeddings [context, width], pooled text [width] or None; remembers nothing."""
        ids = self.tokenizer([prompt])
        if self._sdxl is None or self.second is None:
            output = self.encoder(input_ids=ids)
            self._check(output, "text_encoder")
            return output[0], None
        tokenizer, encoder = self.second
        first, second = self._sdxl.hidden_states
        (hidden,) = self.encoder.session.run_for([first], {"input_ids": ids})
        hidden_2, pooled = encoder.session.run_for([second, POOLED], {"input_ids": tokenizer([prompt])})
        self._check(hidden, "text_encoder")
        self._check(hidden_2, "text_encoder_2")
        if pooled.ndim != 2 or not np.isfinite(pooled).all():
            raise RcdeployError("the text_encoder_2 gave no pooled text", fix="Export the package anew.")
        return np.concatenate([hidden[0], hidden_2[0]], -1), pooled[0]

    def _check(self, output: Array, component: str) -> None:
        check_output(output, component, (1, self.tokenizer.context, *output.shape[2:3]))


def check_output(array: Array, component: str, shape: tuple[int, ...]) -> None:
    """Raises RcdeployError for an output of another shape, or with NaN or infinity, which would be a black image."""
    if array.shape != shape:
        raise RcdeployError(
            f"the {component} gave an array of shape {list(array.shape)} where {list(shape)} was expected",
            fix="Its network is not what the package's manifest says: export it anew.",
        )
    if not np.isfinite(array).all():
        raise RcdeployError(
            f"the {component} gave NaN or infinity instead of an image",
            fix="In fp16 a network may overflow: export it in fp32. In fp32 its weights are damaged.",
        )
