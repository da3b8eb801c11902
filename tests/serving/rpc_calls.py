"""What the tests of gRPC share: Serve's part between gRPC's server and the ingress, and how calls are read."""

from __future__ import annotations

import asyncio
import inspect
import json
import pickle
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from hubs import SOON
from ray.serve.grpc_util import RayServegRPCContext

from warpcache_ray.access_config import AccessConfig, ApiKey, digest
from warpcache_ray.rpc.videos_pb2 import Event
from warpcache_ray.serving import rpc
from warpcache_ray.serving.coordinator import Coordinator

KEYS = {name: f"wc_key-of-{name}" for name in ("alice", "bob", "root")}
ACCESS = AccessConfig(tuple(ApiKey(n, digest(k), admin=n == "root") for n, k in KEYS.items()))


def as_(name: str, **more: str) -> tuple[tuple[str, str], ...]:
    """A client's metadata."""
    return (("x-api-key", KEYS[name]), *((key.replace("_", "-"), v) for key, v in more.items()))


ALICE = as_("alice")


class Passed:
    """Methods as gRPC's server calls them, given what Serve gives: a context of its own that has been on the way, whose
    changes go back with each message."""

    def __init__(self, methods: rpc.Methods) -> None:
        self._methods = methods
        self.over = asyncio.Event()
        """A stream has ended, or its client has left."""

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._methods, name)

        async def once(request: Any, context: Any) -> Any:
            given = pickle.loads(pickle.dumps(RayServegRPCContext(context)))
            answer = await method(request, grpc_context=given)
            given._set_on_grpc_context(context)
            return answer

        async def streamed(request: Any, context: Any) -> AsyncIterator[Any]:
            given = pickle.loads(pickle.dumps(RayServegRPCContext(context)))
            try:
                async for answer in method(request, grpc_context=given):
                    given._set_on_grpc_context(context)
                    yield answer
            finally:
                self.over.set()

        return streamed if inspect.isasyncgenfunction(method) else once


async def told(call: Any) -> list[Any]:
    """All that a call streams; its status is the caller's to see."""
    return await _read(call, [])


async def ended(call: Any) -> list[Event]:
    """All events of a call that doesn't end well."""
    seen: list[Event] = []
    with pytest.raises(grpc.RpcError):
        await _read(call, seen)
    return seen


async def over(hub: Coordinator, *calls: tuple[Any, str]) -> None:
    """Nothing is left of these calls and their jobs."""
    for call, job_id in calls:
        await hub.cancel(job_id)
        await ended(call)


async def _read(call: Any, seen: list[Any]) -> list[Any]:
    async with asyncio.timeout(SOON):
        while (message := await call.read()) is not grpc.aio.EOF:
            seen.append(message)
    return seen


async def problem(call: Any) -> tuple[grpc.StatusCode, dict[str, Any]]:
    """What a call that came to nothing says, in both places alike."""
    with pytest.raises(grpc.RpcError) as refused:
        await (told(call) if hasattr(call, "read") else call)
    trailers = dict(refused.value.trailing_metadata())
    error: dict[str, Any] = json.loads(trailers[rpc.PROBLEM])["error"]
    assert refused.value.details() == error["message"]
    assert ("retry-after" in trailers) == error["retryable"]
    return refused.value.code(), error
