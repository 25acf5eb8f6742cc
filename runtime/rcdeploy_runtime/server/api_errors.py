"""Errors in the shape that clients of OpenAI's API read."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException as StarletteHTTPException

from .schema import ErrorDetails, ErrorResponse

DOCUMENTED = (400, 401, 403, 404, 413, 415, 422, 429, 500, 503, 504)
RESPONSES: dict[int | str, dict[str, Any]] = {status: {"model": ErrorResponse} for status in DOCUMENTED}
CODES = {404: "not_found", 405: "method_not_allowed", 413: "body_too_large"}


class ApiError(HTTPException):
    """An answer to a request that is not served. param: the field that is to blame. code: for programs."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, headers)
        self.param, self.code = param, code

    def response(self) -> JSONResponse:
        return JSONResponse(
            error_body(self.status_code, str(self.detail), self.code, self.param), self.status_code, self.headers
        )


def error_body(status: int, message: str, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    kind = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}.get(
        status, "server_error" if status >= 500 else "invalid_request_error"
    )
    return ErrorResponse(error=ErrorDetails(message=message, type=kind, param=param, code=code)).model_dump()


def add_handlers(app: FastAPI) -> None:
    """Every error of fastapi's own gets the same shape."""

    async def http_error(_: Request, error: Exception) -> JSONResponse:
        if isinstance(error, ApiError):
            return error.response()
        assert isinstance(error, StarletteHTTPException)
        status = error.status_code
        body = error_body(status, str(error.detail), CODES.get(status))
        return JSONResponse(body, status, dict(error.headers or {}))

    async def invalid(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]  # its "input" may hold a prompt, and is left out
        if first["type"] == "json_invalid":
            return ApiError(400, "the body is no JSON", code="invalid_json").response()
        if len(first["loc"]) == 1 and first["type"] == "model_attributes_type":
            message = "the body must be a JSON object, with content-type application/json"
            return ApiError(422, message, code="invalid_value").response()
        param = ".".join(str(part) for part in first["loc"][1:]) or None
        message = f"{param}: {first['msg']}" if param else f"the body: {first['msg']}"
        return ApiError(422, message, code="invalid_value", param=param).response()

    app.add_exception_handler(StarletteHTTPException, http_error)
    app.add_exception_handler(RequestValidationError, invalid)
