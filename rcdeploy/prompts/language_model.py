"""Language models that are asked for prompts and for yes or no: behind an HTTP endpoint, or a folder on this machine.

One small interface, LanguageModel: a request goes in, a text comes out. Many requests at once, and what was answered
before, are the business of `journal`.
"""

from __future__ import annotations

import email.utils
import hashlib
import json
import os
import threading
import time
from dataclasses import asdict, dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any, Protocol

import httpx2
import tenacity

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

        Raises RcdeployError for what is no http address, and when that variable holds no key.
        """
        if not url.startswith(("http://", "https://")):
            raise RcdeployError(
                f"{url} is no address of an endpoint", fix="Such as --endpoint http://localhost:8000/v1"
            )
        self.url = url.rstrip("/").removesuffix("/chat/completions") + "/chat/completions"
        self.name, self.concurrency = model, concurrency
        headers = {"Content-Type": "application/json"}
        if key_variable is not None:
            key = os.environ.get(key_variable, "").strip()
            if not (key and key.isascii() and key.isprintable()):  # what no header can hold, its error would show
                raise RcdeployError(f"the variable {key_variable} holds no API key", fix=f"export {key_variable}=KEY")
            headers["Authorization"] = f"Bearer {key}"
        at_once = httpx2.Limits(max_connections=concurrency)
        self._client = httpx2.Client(headers=headers, timeout=timeout_s, limits=at_once)
        self._interval_s = 60 / requests_per_minute if requests_per_minute else 0.0
        self._next_at, self._turn, self._stopped = 0.0, threading.Lock(), threading.Event()
        backoff = tenacity.wait_exponential_jitter(multiplier=FIRST_WAIT_S, max=LONGEST_WAIT_S, jitter=FIRST_WAIT_S)
        self._tries = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(_Later),
            wait=tenacity.wait_exception(attrgetter("after_s")) + backoff,
            stop=tenacity.stop_after_attempt(retries + 1) | tenacity.stop_when_event_set(self._stopped),
            sleep=tenacity.sleep_using_event(self._stopped),
        )

    def answer(self, request: Request) -> str:
        messages = [{"role": "system", "content": request.system}, {"role": "user", "content": request.user}]
        asked = {"model": self.name, "messages": messages, "max_tokens": request.max_tokens}
        body = json.dumps({**asked, "temperature": request.temperature}).encode()
        try:
            return self._tries(self._post, body)
        except tenacity.RetryError as error:
            last = error.last_attempt
            raise RcdeployError(
                f"{self.url} does not answer ({last.attempt_number} tries): {last.exception()}",
                fix="Is the server up, and the address right? The same command asks only what is missing.",
            ) from None

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
        self._wait_for_a_turn()
        try:
            response = self._client.post(self.url, content=body)
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:  # refused, timed out, cut off
            raise _Later(str(error) or type(error).__name__) from None
        status, said = response.status_code, response.text
        if status in (408, 409, 425, 429) or status >= 500:
            raise _Later(f"status {status} {said[:200]}", response.headers.get("Retry-After", ""))
        if not response.is_success:
            raise RcdeployError(
                f"{self.url} refuses the request: status {status} {said[:500]}",
                fix="Look at --endpoint, --model and the API key's variable (--api-key-env).",
            )
        return _content(response.content)


class _Later(Exception):
    """after_s: when a Retry-After in seconds or with a date says to come again; the usual wait comes on top."""

    def __init__(self, message: str, retry_after: str = "") -> None:
        super().__init__(message)
        try:
            date = email.utils.parsedate_tz(retry_after)
            seconds = email.utils.mktime_tz(date) - time.time() if date else float(retry_after)
        except ValueError:
            seconds = 0.0
        self.after_s = min(max(0.0, seconds), 10 * LONGEST_WAIT_S)


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
