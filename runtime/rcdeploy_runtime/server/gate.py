"""What every request passes: its token, its origin, the size of its body; a line in the log and a count."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import secrets
import time
from urllib.parse import urlsplit

from fastapi.responses import JSONResponse
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .api_errors import ApiError, error_body
from .metrics import Metrics
from .settings import ServerSettings

LOG = logging.getLogger("rcdeploy_runtime.server")
OPEN_PATHS = ("/healthz", "/readyz", "/images/", "/page/")
"""served without a token, as / is: an image's name is a secret itself, and the page asks for the token"""

MAX_DIGITS = 19
"""of a content-length: Python refuses to read numbers of thousands"""


class Gate:
    """An ASGI middleware."""

    def __init__(self, app: ASGIApp, settings: ServerSettings, metrics: Metrics) -> None:
        self._app, self._settings, self._metrics = app, settings, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun, status = time.perf_counter(), 0
        request_id = secrets.token_hex(12)
        scope["request_id"] = request_id

        async def recorded(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        try:
            if refusal := self._refusal(scope):
                await refusal.response()(scope, receive, recorded)
            else:
                await self._app(scope, self._bounded(receive), recorded)
        except asyncio.CancelledError:  # the grace of a stop is over
            if not status:
                await ApiError(503, "the server has stopped", code="stopping").response()(scope, receive, recorded)
        except Exception:
            LOG.exception("request failed", extra={"request_id": request_id})
            if not status:
                body = error_body(500, f"an error of the server; its log has more about request {request_id}")
                await JSONResponse(body, 500)(scope, receive, recorded)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            seconds = time.perf_counter() - begun
            self._metrics.answered(route, status, seconds)
            facts = {"request_id": request_id, "method": scope["method"], "route": route, "status": status}
            LOG.info("request", extra={**facts, "seconds": round(seconds, 4), **scope.get("log", {})})

    def _refusal(self, scope: Scope) -> ApiError | None:
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        if origin is not None and origin not in self._settings.cors_origins and not self._is_own(origin, headers):
            return ApiError(403, "web pages of this origin may not ask this server", code="origin_not_allowed")
        is_open = scope["path"] == "/" or scope["path"].startswith(OPEN_PATHS)
        if not is_open and not self._settings.tokens.accept(headers.get("authorization", "")):
            return ApiError(
                401, "no valid bearer token", code="invalid_api_key", headers={"www-authenticate": "Bearer"}
            )
        length = headers.get("content-length", "")
        if length.isdecimal() and (len(length) > MAX_DIGITS or int(length) > self._settings.limits.body_bytes):
            return self._too_large()
        return None

    def _is_own(self, origin: str, headers: Headers) -> bool:
        """Whether the page that asks is this server's own.

        A name that somebody else's page has, and that leads here since (DNS rebinding), would pass as one; so without
        tokens the address must be a number or localhost.
        """
        try:
            host, name = urlsplit(origin).netloc, urlsplit(origin).hostname or ""
        except ValueError:
            return False
        return host == headers.get("host") and (bool(self._settings.tokens) or name == "localhost" or _is_number(name))

    def _too_large(self) -> ApiError:
        return ApiError(413, f"at most {self._settings.limits.body_bytes:,} bytes are taken", code="body_too_large")

    def _bounded(self, receive: Receive) -> Receive:
        """The same bytes, until they are too many: bodies that do not say their length."""
        count = 0

        async def bounded() -> Message:
            nonlocal count
            message = await receive()
            count += len(message.get("body", b""))
            if count > self._settings.limits.body_bytes:
                raise self._too_large()
            return message

        return bounded


def _is_number(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
