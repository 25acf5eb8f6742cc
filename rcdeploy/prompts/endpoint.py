"""Language models behind an HTTP endpoint. Secrets stay out of messages; answers are bounded in size and time."""

from __future__ import annotations

import asyncio
import base64
import email.utils
import ipaddress
import json
import os
import re
import threading
import time
import urllib.parse
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from operator import attrgetter

import httpx2
import tenacity

from rcdeploy_runtime.errors import RcdeployError

from ..progress import Log, no_log
from .language_model import Request

FIRST_WAIT_S = 1.0
LONGEST_WAIT_S = 60.0
MAX_ANSWER_BYTES = 4_000_000
"""a chat completion of 128 prompts has about 20,000"""
MAX_ERROR_BYTES = 65_536
"""read of what a server sends with an error status"""


@dataclass(frozen=True)
class EndpointOptions:
    """How requests are sent.

    Args:
        concurrency: requests at once.
        requests_per_minute: upper bound, without limit by default.
        timeout_s: seconds from sending a request to the end of its answer.
        retries: further attempts after a failure that may pass.
    """

    concurrency: int = 8
    requests_per_minute: float | None = None
    timeout_s: float = 120
    retries: int = 6


class Endpoint:
    """Any server with OpenAI's /v1/chat/completions. Timeouts, 429 and 5xx are retried with growing waits."""

    is_remote = True

    def __init__(
        self,
        url: str,
        model: str,
        options: EndpointOptions | None = None,
        *,
        key_variable: str | None = None,
        log: Log = no_log,
    ) -> None:
        """Prepares requests; nothing is sent yet.

        Args:
            url: base address up to /v1, or the complete one.
            model: the model's name at the server.
            options: EndpointOptions() by default.
            key_variable: environment variable that holds the API key.
            log: receives a warning when the key would be sent unencrypted.

        Raises:
            RcdeployError: the address is not http or https, or the variable holds no key.
        """
        options = options or EndpointOptions()
        address = _Address(url)
        self.url = address.public
        self.name = model
        self.concurrency = options.concurrency
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        secrets = [*address.secrets]
        if key_variable is not None:
            key = os.environ.get(key_variable, "").strip()
            if not (key and key.isascii() and key.isprintable()):  # no header can hold it, and the error would show it
                raise RcdeployError(f"the variable {key_variable} holds no API key", fix=f"export {key_variable}=KEY")
            headers["Authorization"] = f"Bearer {key}"
            secrets.append(key)
        if secrets and not address.is_private:
            log(f"{self.url} is not https: the API key is sent where others may read it")
        self._address = address
        self._redact = _Redactor(secrets)
        self._timeout_s = options.timeout_s
        # asyncio alone can bound a whole exchange, from the name's resolution to the last byte
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        weakref.finalize(self, self._loop.call_soon_threadsafe, self._loop.stop)
        limits = httpx2.Limits(max_connections=options.concurrency)
        self._client = httpx2.AsyncClient(headers=headers, timeout=None, limits=limits)
        self._interval_s = 60 / options.requests_per_minute if options.requests_per_minute else 0.0
        self._next_at = 0.0
        self._turn = threading.Lock()
        self._stopped = threading.Event()
        backoff = tenacity.wait_exponential_jitter(multiplier=FIRST_WAIT_S, max=LONGEST_WAIT_S, jitter=FIRST_WAIT_S)
        self._attempts = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(_RetryLater),
            wait=tenacity.wait_exception(attrgetter("after_s")) + backoff,
            stop=tenacity.stop_after_attempt(options.retries + 1) | tenacity.stop_when_event_set(self._stopped),
            sleep=tenacity.sleep_using_event(self._stopped),
        )

    def answer(self, request: Request) -> str:
        messages = [{"role": "system", "content": request.system}, {"role": "user", "content": request.user}]
        body = {"model": self.name, "messages": messages, "max_tokens": request.max_tokens}
        try:
            return self._attempts(self._post, json.dumps({**body, "temperature": request.temperature}).encode())
        except tenacity.RetryError as error:
            last = error.last_attempt
            raise RcdeployError(
                f"{self.url} does not answer ({last.attempt_number} tries): {last.exception()}",
                fix="Is the server up, and the address right? The same command requests only what is missing.",
            ) from None

    def stop(self) -> None:
        self._stopped.set()

    def _wait_for_turn(self) -> None:
        """Requests leave `_interval_s` apart, whichever thread sends them."""
        with self._turn:
            wait = self._next_at - time.monotonic()
            self._next_at = max(self._next_at, time.monotonic()) + self._interval_s
        if wait > 0:
            self._stopped.wait(wait)
        if self._stopped.is_set():
            raise RcdeployError("stopped")

    def _post(self, body: bytes) -> str:
        """Raises _RetryLater for failures that may pass, RcdeployError for those that will not."""
        self._wait_for_turn()
        try:
            exchange = asyncio.run_coroutine_threadsafe(self._exchange(body), self._loop)
            status, retry_after, content = exchange.result()
        except TimeoutError:
            raise _RetryLater(f"no complete answer within {self._timeout_s:g} s") from None
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:  # refused, cut off
            raise _RetryLater(self._redact(str(error)) or type(error).__name__) from None
        text = self._redact(content[:MAX_ERROR_BYTES].decode(errors="replace"))
        if status in (408, 409, 425, 429) or status >= 500:
            raise _RetryLater(f"status {status} {text[:200]}", retry_after)
        if not 200 <= status < 300:
            raise RcdeployError(
                f"{self.url} refuses the request: status {status} {text[:500]}",
                fix="Check --endpoint, --model and the API key's variable (--api-key-env).",
            )
        try:
            message = json.loads(content)["choices"][0]["message"]["content"]
        except (ValueError, KeyError, IndexError, TypeError, RecursionError):
            raise _RetryLater(f"its answer is no chat completion: {text[:200]!r}") from None
        return message if isinstance(message, str) else ""

    async def _exchange(self, body: bytes) -> tuple[int, str, bytes]:
        """Returns status, Retry-After and content, of an error no more than MAX_ERROR_BYTES.

        Raises RcdeployError for more than MAX_ANSWER_BYTES and for a compressed answer, which may grow without bound.
        """
        async with (
            asyncio.timeout(self._timeout_s),
            self._client.stream("POST", self._address.url, content=body) as response,
        ):
            if (encoding := response.headers.get("Content-Encoding", "identity")) != "identity":
                raise RcdeployError(
                    f"{self.url} sends its answer compressed ({encoding[:20]!r}), which was not allowed"
                )
            content = bytearray()
            async for chunk in response.aiter_raw():
                content += chunk
                if not response.is_success and len(content) >= MAX_ERROR_BYTES:
                    break
                if len(content) > MAX_ANSWER_BYTES:
                    raise RcdeployError(
                        f"{self.url} sends an answer of more than {MAX_ANSWER_BYTES:,} bytes",
                        fix="Is the address that of a language model?",
                    )
            return response.status_code, response.headers.get("Retry-After", ""), bytes(content)


class _Address:
    """An endpoint's address with its secrets.

    Args:
        url: the complete address, as it is requested.
        public: the address without user, password and query, for messages.
        secrets: password, credentials as their header spells them, and values of the query.
        is_private: whether the way there is encrypted, or stays on this machine.
    """

    def __init__(self, url: str) -> None:
        base, mark, query = url.strip().partition("?")
        base = base.rstrip("/").removesuffix("/chat/completions") + "/chat/completions"
        self.url = base + mark + query
        self.public = re.sub(r"(?<=//).*@", "", base)
        try:
            parts = urllib.parse.urlsplit(base)
            host = parts.hostname
            _ = parts.port  # raises ValueError
        except ValueError:
            host = None
        if not host or parts.scheme not in ("http", "https"):
            raise RcdeployError(
                f"{re.sub(r'(?<=//).*@', '', url.partition('?')[0])} is no address of an endpoint",
                fix="Such as --endpoint http://localhost:8000/v1",
            )
        self.is_private = parts.scheme == "https" or _is_loopback(host)
        self.secrets = [value for _, value in urllib.parse.parse_qsl(query)]
        if parts.password:
            user, password = urllib.parse.unquote(parts.username or ""), urllib.parse.unquote(parts.password)
            self.secrets += [password, base64.b64encode(f"{user}:{password}".encode()).decode()]


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


class _Redactor:
    """Replaces secrets in a text, also as URLs and JSON spell them."""

    def __init__(self, secrets: Iterable[str]) -> None:
        forms: set[str] = set()
        for secret in secrets:
            escaped = json.dumps(secret)[1:-1]
            forms |= {secret, urllib.parse.quote(secret), urllib.parse.quote(secret, safe=""), escaped}
            forms.add(escaped.replace("/", "\\/"))
        self._forms = sorted(forms - {""}, key=len, reverse=True)

    def __call__(self, text: str) -> str:
        for form in self._forms:
            text = text.replace(form, "***")
        return text


class _RetryLater(Exception):
    """after_s: seconds or date of a Retry-After header; the usual wait comes on top."""

    def __init__(self, message: str, retry_after: str = "") -> None:
        super().__init__(message)
        try:
            date = email.utils.parsedate_tz(retry_after)
            seconds = email.utils.mktime_tz(date) - time.time() if date else float(retry_after)
        except (ValueError, OverflowError):
            seconds = 0.0
        self.after_s = min(max(0.0, seconds), 10 * LONGEST_WAIT_S)
