"""Errors as HTTP answers: one envelope, typed codes, and a bound on bodies."""

from __future__ import annotations

import json
import math
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ValidationError
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from warpcache_ray.errors import (
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    PayloadTooLarge,
    Unauthenticated,
    WarpCacheError,
)
from warpcache_ray.serving.schemas import GenerateRequest

_SHOWN = 100
FORMS = ("multipart/form-data", "application/x-www-form-urlencoded")
"""The second is what aiohttp makes of a form without files."""
RETRY_S = 2.0
"""When to try again, where nobody knows better."""


Larger = Callable[[str], Awaitable[int]]
"""How many bytes a path allows beyond the usual limit; asked only if that is exceeded."""


def all_errors() -> list[type[WarpCacheError]]:
    """Every class of the exception tree."""
    found, queue = [], [WarpCacheError]
    while queue:
        kind = queue.pop()
        found.append(kind)
        queue += kind.__subclasses__()
    return found


def status_of(error: dict[str, Any]) -> int:
    """The HTTP status of an error as a job's record has it."""
    codes = {kind.code: kind.status for kind in all_errors()}
    return codes.get(error["code"], 500)


def patience(error: WarpCacheError) -> dict[str, str]:
    """When to try again, as a header, if that may help."""
    if not error.retryable:
        return {}
    wait_s = RETRY_S if error.retry_after_s is None else max(1.0, error.retry_after_s)
    return {"retry-after": str(math.ceil(wait_s))}


def unexpected(error: Exception) -> WarpCacheError:
    """What a client hears of an error that isn't ours."""
    return WarpCacheError(f"{type(error).__name__} in the service; see its log")


def envelope(error: WarpCacheError, status: int | None = None) -> JSONResponse:
    """The error as `{"error": {message, type, param, code, retryable}}`."""
    headers = patience(error)
    if isinstance(error, Unauthenticated):
        headers["www-authenticate"] = "Bearer"
    return _Ascii({"error": error.to_dict()}, status or error.status, headers)


class _Ascii(JSONResponse):
    """JSON in ASCII: a message may quote what a client sent, and that may be no valid text."""

    def render(self, content: Any) -> bytes:
        """The body."""
        return json.dumps(content).encode()


def install(app: FastAPI, body_bytes: int, larger: Larger | None = None) -> None:
    """Handlers for our errors, for FastAPI's validation and for unknown routes; the body limit."""

    @app.exception_handler(WarpCacheError)
    async def ours(request: Request, error: WarpCacheError) -> JSONResponse:
        return envelope(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        broken = first["type"] == "json_invalid"
        return envelope(explain(first), 400 if broken else None)

    @app.exception_handler(HTTPException)
    async def plain(request: Request, error: HTTPException) -> JSONResponse:
        message = f"{request.method} {request.url.path}: {error.detail}"
        kind = {404: NotFound, 405: MethodNotAllowed}.get(error.status_code, InvalidRequest)
        return envelope(kind(message), error.status_code)

    @app.exception_handler(Exception)
    async def foreign(request: Request, error: Exception) -> JSONResponse:
        return envelope(unexpected(error))

    app.add_middleware(BodyLimit, limit=body_bytes, larger=larger)


def refusal(error: ValidationError, schema: type[BaseModel]) -> InvalidRequest:
    """What a request is refused for that doesn't keep to its `schema`."""
    first: dict[str, Any] = {**error.errors()[0]}
    return explain({**first, "loc": ("body", *first["loc"])}, schema)


def explain(first: dict[str, Any], schema: type[BaseModel] = GenerateRequest) -> InvalidRequest:
    """A validation error of FastAPI's as ours: which field, which value, what is allowed (by `schema`)."""
    if first["type"] == "json_invalid":
        return InvalidRequest(f"the body is not JSON: {first['ctx']['error']}")
    # Before the field's name stands where it came from, behind it pydantic's words for the alternatives that it tried.
    field = next((str(part) for part in first["loc"][1:]), "")
    if first["type"] == "missing":
        return InvalidRequest(f"{field or 'the body'} is missing", field or None)
    if not field and not isinstance(first["input"], dict):
        said = "the body must be a JSON object, sent with content-type: application/json"
        return InvalidRequest(said)
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message = f"there is no such field; there are: {', '.join(schema.model_fields)}"
    value = repr(first["input"])
    value = value if len(value) <= _SHOWN else f"{value[:_SHOWN]}…"
    where = f"{field} = {value}: " if field else ""
    return InvalidRequest(f"{where}{message}", field or None)


def check_rest(body: bytes, limit: int) -> None:
    """Refuses a body (JSON, or a form's texts between quotes) of which more than `limit` bytes are something else than
    one image as `data:` URL. This is found without parsing it: what takes time to parse is the rest.

    Raises:
        PayloadTooLarge: the rest is too large.
    """
    # Base64 has no quotes in it, and between two of them JSON begins with `data:` only where that is a string's text.
    images = (len(part) for part in body.split(b'"') if part.startswith(b"data:"))
    rest = len(body) - max(images, default=0)
    if rest > limit:
        said = f"the body is too large: {rest} bytes without an image; at most {limit} are allowed"
        raise PayloadTooLarge(said, "body")


class BodyLimit:
    """Refuses bodies over `limit` bytes, by their declared length or as they arrive; holds what it lets through. What
    `larger` adds for the path is for an image alone (in forms, for their files: whoever reads them checks the rest)."""

    def __init__(self, app: ASGIApp, limit: int, larger: Larger | None = None) -> None:
        self.app = app
        self.limit = limit
        self.larger = larger

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI entry."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            messages = await self._taken(scope, receive)
        except WarpCacheError as error:
            await envelope(error)(scope, receive, send)
            return

        async def replay() -> Message:
            return messages.pop(0) if messages else await receive()

        await self.app(scope, replay, send)

    async def _taken(self, scope: Scope, receive: Receive) -> list[Message]:
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        size = int(declared) if declared.isdigit() else 0
        limit = await self._limit(scope, size, self.limit)
        messages: list[Message] = []
        taken = 0
        while not messages or messages[-1].get("more_body"):
            messages.append(await receive())
            taken += len(messages[-1].get("body", b""))
            limit = await self._limit(scope, taken, limit)
        if taken > self.limit and not Headers(scope=scope).get("content-type", "").startswith(
            FORMS
        ):
            check_rest(b"".join(message.get("body", b"") for message in messages), self.limit)
        return messages

    async def _limit(self, scope: Scope, size: int, limit: int) -> int:
        if size > limit and self.larger is not None:
            limit = self.limit + await self.larger(scope["path"])
        if size > limit:
            said = f"the body is too large; at most {limit} bytes are allowed"
            raise PayloadTooLarge(said, "body")
        return limit
