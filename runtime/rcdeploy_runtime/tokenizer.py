"""Prompts to token ids with the `tokenizers` library, as transformers' CLIPTokenizer makes them."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from .errors import RcdeployError
from .files import read_json
from .limits import MAX_CONTEXT
from .noise_schedule import Array
from .tokenizer_checks import check_tokenizer, check_tokenizer_size

DEFAULT_PAD_TOKEN = "<|endoftext|>"


class PromptTokenizer:
    """Args:
        folder: has tokenizer.json and tokenizer_config.json.

    Attributes:
        context: number of tokens that a prompt is cut or padded to.

    Raises:
        RcdeployError: a file is missing, damaged, or asks for what no text encoder has.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        config = read_json(folder / "tokenizer_config.json")
        if not isinstance(config, dict):
            raise RcdeployError(f"{folder / 'tokenizer_config.json'} holds no JSON object")
        self.context = _context(config, folder)
        check_tokenizer_size(folder / "tokenizer.json")
        data = read_json(folder / "tokenizer.json")
        check_tokenizer(folder / "tokenizer.json", data)
        with _readable(f"{folder / 'tokenizer.json'} cannot be read"):
            # what was checked, not the file: another parser may take the other one of two equal keys
            self._tokenizer = tokenizers.Tokenizer.from_str(json.dumps(data))
        pad = config.get("pad_token") or config.get("eos_token") or DEFAULT_PAD_TOKEN
        pad = pad.get("content") if isinstance(pad, dict) else pad
        pad_id = self._tokenizer.token_to_id(pad) if isinstance(pad, str) else None
        if pad_id is None:
            raise RcdeployError(f"{folder}: the padding token {pad!r} is not in tokenizer.json")
        with _readable(f"{folder / 'tokenizer.json'} cannot be used"):
            self._tokenizer.enable_truncation(self.context)
            self._tokenizer.enable_padding(length=self.context, pad_id=pad_id, pad_token=pad)

    def __call__(self, prompts: Sequence[str]) -> Array:
        """n prompts -> ids int64 [n, context]. A longer prompt is cut, with a warning that quotes what is lost."""
        with _readable(f"{self.folder} cannot tokenize a prompt"):
            encoded = self._tokenizer.encode_batch(list(prompts))
        for prompt, e in zip(prompts, encoded, strict=True):
            if e.overflowing:
                at = max(end for _, end in e.offsets)
                warnings.warn(
                    f"the prompt has more than {self.context} tokens; what follows was cut: {prompt[at:].strip()!r}",
                    stacklevel=4,
                )
        if any(len(e.ids) != self.context for e in encoded):
            raise RcdeployError(f"{self.folder}: the tokenizer does not keep to {self.context} tokens")
        return np.asarray([e.ids for e in encoded], np.int64)


def _context(config: dict[str, Any], folder: Path) -> int:
    context = config.get("model_max_length")
    if type(context) is not int or not 1 <= context <= MAX_CONTEXT:
        raise RcdeployError(
            f"{folder / 'tokenizer_config.json'}: model_max_length is {context!r}; 1 to {MAX_CONTEXT:,} is allowed",
            fix="Export the package anew.",
        )
    return context


@contextmanager
def _readable(message: str) -> Iterator[None]:
    """Turns what `tokenizers` raises into RcdeployError: plain Exception, and panics, which are no Exception."""
    try:
        yield
    except RcdeployError:
        raise
    except Exception as error:
        raise RcdeployError(f"{message}: {error}") from None
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise RcdeployError(f"{message}: {error}") from None
