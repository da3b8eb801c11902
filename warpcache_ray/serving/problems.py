"""Errors as HTTP answers: one envelope, typed codes, and a bound on bodies."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from warpcache_ray.errors import InvalidRequest, PayloadTooLarge, WarpCacheError

_SHOWN = 100


def all_errors() -> list[type[WarpCacheError]]:
    """Every class of the exception tree."""
    found, queue = [], [WarpCacheError]
    while queue:
        kind = queue.pop()
        found.append(kind)
        queue += kind.__subclasses__()
    return found


def envelope(error: WarpCacheError, status: int | None = None) -> JSONResponse:
    """The error as `{"error": {message, type, param, code, retryable}}`."""
    headers = {"retry-after": "2"} if error.retryable else {}
    return JSONResponse({"error": error.to_dict()}, status or error.status, headers)


def install(app: FastAPI, body_bytes: int) -> None:
    """Handlers for our errors, for FastAPI's validation and for unknown routes; the body limit."""

    @app.exception_handler(WarpCacheError)
    async def ours(request: Request, error: WarpCacheError) -> JSONResponse:
        return envelope(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return explain(error.errors()[0])

    @app.exception_handler(HTTPException)
    async def plain(request: Request, error: HTTPException) -> JSONResponse:
        body = InvalidRequest(f"{request.method} {request.url.path}: {error.detail}").to_dict()
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, body["code"])
        return JSONResponse({"error": body | {"code": code}}, error.status_code)

    app.add_middleware(BodyLimit, limit=body_bytes)


def explain(first: dict[str, Any]) -> JSONResponse:
    """A validation error of pydantic's as ours: which field, which value, what is allowed."""
    if first["type"] == "json_invalid":
        return envelope(InvalidRequest(f"the body is not JSON: {first['ctx']['error']}"), 400)
    field = ".".join(str(part) for part in first["loc"] if part != "body")
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "missing":
        return envelope(InvalidRequest(f"{field} is missing", field))
    value = repr(first["input"])
    value = value if len(value) <= _SHOWN else f"{value[:_SHOWN]}…"
    where = f"{field} = {value}: " if field else ""
    return envelope(InvalidRequest(f"{where}{message}", field or None))


class BodyLimit:
    """Refuses bodies over `limit` bytes, by their declared length or as they arrive."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self.app = app
        self.limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI entry."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > self.limit:
            await self._refuse(scope, receive, send)
            return
        taken = 0

        async def bounded() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > self.limit:
                raise PayloadTooLarge(self._message, "body")
            return message

        await self.app(scope, bounded, send)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        await envelope(PayloadTooLarge(self._message, "body"))(scope, receive, send)

    @property
    def _message(self) -> str:
        return f"the body is too large; at most {self.limit} bytes are allowed"
