"""Who asks: API keys are checked at the door, and from whose key it is follows what a client may see and do.

Without keys in the configuration everyone may do everything, and is known by whatever key it sends. What it asks for is
then counted together with what all others do: a name that anyone can invent evades no rate, and takes no memory.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from fastapi import Depends, FastAPI
from fastapi.middleware.cors import CORSMiddleware
from fastapi.security import APIKeyHeader, HTTPBearer
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from warpcache_ray.access_config import AccessConfig, RateLimits, digest
from warpcache_ray.errors import Forbidden, RateLimited, Unauthenticated
from warpcache_ray.serving.lifecycle import ANONYMOUS
from warpcache_ray.serving.problems import envelope
from warpcache_ray.serving.ratelimit import HEADERS, RateLimiter

OPEN = frozenset({"/", "/health", "/docs", "/openapi.json"})
"""Whoever watches the service, or reads about it, needs no key; nor does the page, which asks for one itself."""
FILES = "/page/"
"""What pages are made of."""

EVERYONE = "everyone"
"""Whose rates hold where there are no keys."""

HEADER = "x-api-key"
_HELP = "An API key, as `warpcache key create` makes them."
SCHEMES = [
    Depends(APIKeyHeader(name=HEADER, auto_error=False, description=_HELP)),
    Depends(HTTPBearer(auto_error=False, description=f"{_HELP} So OpenAI's clients send it.")),
]
"""For the API's description: either will do. The check itself is `Gate`'s, before the body is read."""

METHODS = ["GET", "POST", "DELETE"]
TOLD = ["retry-after", "x-job-id", "x-seed", *HEADERS]


@dataclass(frozen=True, slots=True)
class Caller:
    """The client of a request; an admin has everyone's jobs, any other its own."""

    name: str
    admin: bool
    rate: RateLimits
    counted_as: str
    """Whom its rate holds for."""

    @property
    def owner(self) -> str | None:
        """Whose jobs it may see; None: everyone's."""
        return None if self.admin else self.name


CALLER: ContextVar[Caller] = ContextVar("caller")
"""Of the request that is being answered. Open routes have none."""


def identify(access: AccessConfig, headers: Mapping[str, str]) -> Caller:
    """Who asks, by `x-api-key` or as OpenAI's clients send their key.

    Raises:
        Unauthenticated: there are keys, and it has none of them.
    """
    scheme, _, token = headers.get("authorization", "").partition(" ")
    sent = headers.get(HEADER) or (token if scheme.lower() == "bearer" else "")
    if not access.keys:
        return Caller(digest(sent)[:16] if sent else ANONYMOUS, True, access.rate, EVERYONE)
    if not sent:
        raise Unauthenticated(f"an API key is needed, as {HEADER} or as Authorization: Bearer")
    found, claimed = None, digest(sent)
    for key in access.keys:
        # All of them, so that the time tells nothing about where it stands.
        if hmac.compare_digest(key.sha256, claimed):
            found = key
    if found is None:
        raise Unauthenticated("the API key is unknown")
    return Caller(found.name, found.admin, found.rate or access.rate, found.name)


async def only_admins() -> None:
    """For routes that no other client may use.

    Raises:
        Forbidden: the caller is another one.
    """
    if not CALLER.get().admin:
        raise Forbidden("this needs an admin's API key")


class Gate:
    """Lets in who may come, as often as it may, before anything of the request is read; tells it what is left."""

    def __init__(self, app: ASGIApp, access: AccessConfig, limiter: RateLimiter) -> None:
        self.app = app
        self.access = access
        self.limiter = limiter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI entry."""
        if scope["type"] != "http" or _open(_path(scope)):
            await self.app(scope, receive, send)
            return
        try:
            caller = identify(self.access, Headers(scope=scope))
        except Unauthenticated as error:
            await envelope(error)(scope, receive, send)
            return
        send = self._telling(caller, send)
        try:
            self.limiter.take("requests", caller.counted_as, caller.rate)
        except RateLimited as error:
            await envelope(error)(scope, receive, send)
            return
        token = CALLER.set(caller)
        try:
            await self.app(scope, receive, send)
        finally:
            CALLER.reset(token)

    def _telling(self, caller: Caller, send: Send) -> Send:
        async def tell(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = self.limiter.headers(caller.counted_as, caller.rate)
                MutableHeaders(scope=message).update(headers)
            await send(message)

        return tell


def _open(path: str) -> bool:
    return path in OPEN or path.startswith(FILES)


def _path(scope: Scope) -> str:
    """As the routes know it, without the prefix under which Serve has the application."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", "")) or "/"


def install(app: FastAPI, access: AccessConfig, limiter: RateLimiter) -> None:
    """The door; before it, where configured, what browsers ask about pages of other origins."""
    app.add_middleware(Gate, access=access, limiter=limiter)
    if access.cors_origins:
        cors: dict[str, Any] = {"allow_origins": access.cors_origins, "allow_methods": METHODS}
        app.add_middleware(CORSMiddleware, **cors, allow_headers=["*"], expose_headers=TOLD)
