"""Models of transformers in folders on this machine: a language model, and what loading any of them has in common.

Nothing of a folder is executed: weights are safetensors, and tokenizers or models with code of their own are refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rcdeploy_runtime.errors import RcdeployError

from .language_model import Request

LOADING = {"local_files_only": True, "trust_remote_code": False}
"""arguments of every from_pretrained: without the second, transformers asks on stdin whether to run a folder's code"""


@contextmanager
def loading_errors(folder: Path, kind: str) -> Iterator[None]:
    """Turns whatever transformers, safetensors and tokenizers raise for a damaged folder into an RcdeployError.

    kind: "language model".
    """
    try:
        yield
    except BaseException as error:
        # a panic of tokenizers is no Exception
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        text = " ".join(str(error).split())[:400] or type(error).__name__
        raise RcdeployError(
            f"{folder} holds no {kind}: {text}",
            fix="Give a folder with config.json, model.safetensors and the tokenizer, as transformers writes it.",
        ) from error


def check_complete(info: Mapping[str, Any]) -> None:
    """Raises ValueError when weights were missing or misshapen: transformers makes random ones of them, in silence.

    info: from_pretrained's loading info.
    """
    for key, what in (("missing_keys", "lacks"), ("mismatched_keys", "has another shape of")):
        if names := sorted(map(str, info.get(key) or ())):
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise ValueError(f"model.safetensors {what} {', '.join(names[:3])}{more}")


class LocalModel:
    """A causal language model in transformers' layout, safetensors only; one request at a time."""

    is_remote = False
    concurrency = 1

    def __init__(self, folder: Path) -> None:
        """Raises RcdeployError when the folder holds no such model."""
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        with loading_errors(folder, "language model"):
            self.tokenizer = AutoTokenizer.from_pretrained(folder, **LOADING)
            model, info = AutoModelForCausalLM.from_pretrained(
                folder, use_safetensors=True, output_loading_info=True, **LOADING
            )
            check_complete(info)
        self.model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
        self.name = Path(folder).resolve().name
        self._stopped = False

    def answer(self, request: Request) -> str:
        """Greedy at temperature 0; else sampled, with a seed that is a function of the request."""
        import torch

        if self._stopped:
            raise RcdeployError("stopped")
        messages = [{"role": "system", "content": request.system}, {"role": "user", "content": request.user}]
        if getattr(self.tokenizer, "chat_template", None):
            text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            tokens = self.tokenizer(text, return_tensors="pt", add_special_tokens=False)
        else:
            tokens = self.tokenizer(f"{request.system}\n\n{request.user}\n\n", return_tensors="pt")
        tokens = {k: tokens[k].to(self.model.device) for k in ("input_ids", "attention_mask")}
        sampling: dict[str, Any] = {"do_sample": request.temperature > 0}
        if request.temperature > 0:
            sampling |= {"temperature": request.temperature}
        with torch.random.fork_rng(), torch.inference_mode():
            torch.manual_seed(int(request.key(self.name)[:15], 16))
            output = self.model.generate(**tokens, **sampling, max_new_tokens=request.max_tokens)
        return str(self.tokenizer.decode(output[0, tokens["input_ids"].shape[1] :], skip_special_tokens=True))

    def stop(self) -> None:
        self._stopped = True
