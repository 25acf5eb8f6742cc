"""Prompts to token ids with the `tokenizers` library, as transformers' CLIPTokenizer makes them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from .errors import RcdeployError
from .files import read_json
from .noise_schedule import Array


class PromptTokenizer:
    """folder: has tokenizer.json and tokenizer_config.json. context: tokens a prompt is cut or padded to."""

    def __init__(self, folder: Path) -> None:
        config: dict[str, Any] = read_json(folder / "tokenizer_config.json")
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # the library raises plain Exception
            raise RcdeployError(f"{folder / 'tokenizer.json'} cannot be read: {error}") from None
        self.context = int(config["model_max_length"])
        pad = config.get("pad_token") or config.get("eos_token") or "<|endoftext|>"
        pad = pad["content"] if isinstance(pad, dict) else pad
        self._pad_id = self._tokenizer.token_to_id(pad)
        if self._pad_id is None:
            raise RcdeployError(f"{folder}: the padding token {pad!r} is not in tokenizer.json")
        self._tokenizer.enable_truncation(self.context)
        self._tokenizer.enable_padding(length=self.context, pad_id=self._pad_id, pad_token=pad)

    def __call__(self, prompts: Sequence[str]) -> Array:
        """n prompts -> ids int64 [n, context]. A longer prompt is cut, with a warning that says what was lost."""
        encoded = self._tokenizer.encode_batch(list(prompts))
        for prompt, e in zip(prompts, encoded, strict=True):
            if e.overflowing:
                at = max(end for _, end in e.offsets)
                warnings.warn(
                    f"the prompt has more than {self.context} tokens; what follows was cut: {prompt[at:].strip()!r}",
                    stacklevel=4,
                )
        return np.asarray([e.ids for e in encoded], np.int64)
