"""Language models that are asked for prompts and for yes or no: behind an HTTP endpoint, or a folder on this machine.

One small interface, LanguageModel: a request goes in, a text comes out. Many requests at once, and what was answered
before, are the business of `journal`.
"""

from __future__ import annotations

import email.utils
import hashlib
import http.client
import json
import os
import random
import threading
import time
import urllib.error
import urllib.request
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from rcdeploy_runtime.errors import RcdeployError

CHARACTERS_PER_TOKEN = 4
"""of English text, roughly: for estimates of cost only"""
FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 60.0


@dataclass(frozen=True)
class Request:
    """max_tokens: of the answer. repeat: sets apart what is asked more than once."""

    system: str
    user: str
    max_tokens: int
    temperature: float = 0.0
    repeat: int = 0

    def key(self, model: str) -> str:
        """32 hex digits: equal for what may be answered alike."""
        return hashlib.sha256(json.dumps([model, asdict(self)], sort_keys=True).encode()).hexdigest()[:32]


class LanguageModel(Protocol):
    """name: who answers, part of a request's key. concurrency: requests it takes at once. is_remote: may cost money."""

    name: str
    concurrency: int
    is_remote: bool

    def answer(self, request: Request) -> str:
        """The model's text. Raises RcdeployError when there will be none."""

    def stop(self) -> None:
        """Waits no longer: requests under way end soon, with an RcdeployError if need be."""


class Endpoint:
    """Any server with OpenAI's /v1/chat/completions. Timeouts, 429 and 5xx are tried again, later and later."""

    is_remote = True

    def __init__(
        self,
        url: str,
        model: str,
        *,
        key_variable: str | None = None,
        concurrency: int = 8,
        requests_per_minute: float | None = None,
        timeout_s: float = 120,
        retries: int = 6,
    ) -> None:
        """url: up to /v1, or the whole address. key_variable: the environment variable that holds the API key.

        Raises RcdeployError for what is no http address, and when that variable is not set.
        """
        if not url.startswith(("http://", "https://")):
            raise RcdeployError(
                f"{url} is no address of an endpoint", fix="Such as --endpoint http://localhost:8000/v1"
            )
        self.url = url.rstrip("/").removesuffix("/chat/completions") + "/chat/completions"
        self.name, self.concurrency, self.timeout_s, self.retries = model, concurrency, timeout_s, retries
        self._headers = {"Content-Type": "application/json"}
        if key_variable is not None:
            if not os.environ.get(key_variable):
                raise RcdeployError(
                    f"the environment variable {key_variable} is not set", fix=f"export {key_variable}=your API key"
                )
            self._headers["Authorization"] = f"Bearer {os.environ[key_variable]}"
        self._interval_s = 60 / requests_per_minute if requests_per_minute else 0.0
        self._next_at, self._turn, self._stopped = 0.0, threading.Lock(), threading.Event()

    def answer(self, request: Request) -> str:
        messages = [{"role": "system", "content": request.system}, {"role": "user", "content": request.user}]
        asked = {"model": self.name, "messages": messages, "max_tokens": request.max_tokens}
        body = json.dumps({**asked, "temperature": request.temperature}).encode()
        for attempt in range(self.retries + 1):
            self._wait_for_a_turn()
            try:
                return self._post(body)
            except _Later as error:
                if attempt == self.retries or self._stopped.is_set():
                    raise RcdeployError(
                        f"{self.url} does not answer ({attempt + 1} tries): {error}",
                        fix="Is the server up, and the address right? The same command asks only what is missing.",
                    ) from None
                backoff = min(FIRST_WAIT_S * 2**attempt, LONGEST_WAIT_S) * random.uniform(0.5, 1)
                self._stopped.wait(backoff if error.after_s is None else min(error.after_s, 10 * LONGEST_WAIT_S))
        raise AssertionError("unreachable: the last try returns or raises")

    def stop(self) -> None:
        self._stopped.set()

    def _wait_for_a_turn(self) -> None:
        """Requests leave `_interval_s` apart, whichever thread sends them."""
        with self._turn:
            wait = self._next_at - time.monotonic()
            self._next_at = max(self._next_at, time.monotonic()) + self._interval_s
        if wait > 0:
            self._stopped.wait(wait)
        if self._stopped.is_set():
            raise RcdeployError("stopped")

    def _post(self, body: bytes) -> str:
        """Raises _Later for what may pass, RcdeployError for what will not."""
        request = urllib.request.Request(self.url, body, self._headers)
        try:
            with urllib.request.urlopen(request, timeout=self.timeout_s) as response:
                return _content(response.read())
        except urllib.error.HTTPError as error:
            with error:
                said = error.read(2000).decode(errors="replace")
            if error.code in (408, 409, 425, 429) or error.code >= 500:
                raise _Later(f"status {error.code} {said[:200]}", _retry_after(error.headers)) from None
            raise RcdeployError(
                f"{self.url} refuses the request: status {error.code} {said[:500]}",
                fix="Look at --endpoint, --model and the API key's variable (--api-key-env).",
            ) from None
        except (OSError, http.client.HTTPException) as error:  # refused, timed out, cut off
            raise _Later(str(error) or type(error).__name__) from None


class _Later(Exception):
    """after_s: when the server says to come again, if it does."""

    def __init__(self, message: str, after_s: float | None = None) -> None:
        super().__init__(message)
        self.after_s = after_s


def _retry_after(headers: Any) -> float | None:
    """Seconds, from a header in seconds or with a date; None without one, or with one that nobody can read."""
    given = headers.get("Retry-After")
    if not given:
        return None
    try:
        return max(0.0, float(given))
    except ValueError:
        date = email.utils.parsedate_tz(given)
        return max(0.0, email.utils.mktime_tz(date) - time.time()) if date else None


def _content(body: bytes) -> str:
    try:
        content = json.loads(body)["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError):
        raise _Later(f"its answer is no chat completion: {body[:200]!r}") from None
    return content if isinstance(content, str) else ""


class LocalModel:
    """A causal language model in transformers' layout, safetensors only; one request at a time."""

    is_remote, concurrency = False, 1

    def __init__(self, folder: Path) -> None:
        """Raises RcdeployError when the folder holds no such model."""
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        try:
            self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            model = AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True, local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            raise RcdeployError(
                f"{folder} holds no language model: {error}",
                fix="Give a folder with config.json, model.safetensors and the tokenizer, as transformers writes it.",
            ) from error
        self.model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
        self.name = Path(folder).resolve().name
        self._stopped = False

    def answer(self, request: Request) -> str:
        """Greedy at temperature 0; else sampled, by a seed that is made of the request."""
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
            made = self.model.generate(**tokens, **sampling, max_new_tokens=request.max_tokens)
        return str(self.tokenizer.decode(made[0, tokens["input_ids"].shape[1] :], skip_special_tokens=True))

    def stop(self) -> None:
        self._stopped = True
