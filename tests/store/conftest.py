"""The servers that the store is tested with: each is launched anew, for one test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest
from redis.asyncio import Redis
from servers import SERVERS

from warpcache_ray.store.connection import connect
from warpcache_ray.store.jobs import JobStore
from warpcache_ray.store.policies import PolicyStore
from warpcache_ray.store.server import EmbeddedServer


@pytest.fixture(params=SERVERS)
def executable(request: pytest.FixtureRequest) -> Path:
    """Each server's executable in turn."""
    found = SERVERS[request.param]()
    if found is None:
        pytest.skip(f"{request.param} isn't installed")
    return found


@pytest.fixture
def server(executable: Path, tmp_path: Path) -> Iterator[EmbeddedServer]:
    """A living server; what a test has launched in its folder ends with it."""
    server = EmbeddedServer(tmp_path / "store", executable)
    server.start()
    yield server
    server.stop()


@pytest.fixture
async def redis(server: EmbeddedServer) -> AsyncIterator[Redis]:
    """A client of that server."""
    redis = connect(server.url)
    yield redis
    await redis.aclose()


@pytest.fixture
def store(redis: Redis) -> JobStore:
    """A store on that server."""
    return JobStore(redis, "app")


@pytest.fixture
def policies(redis: Redis) -> PolicyStore:
    """A store of policies on that server."""
    return PolicyStore(redis, "app")


@asynccontextmanager
async def _loses_one_answer(
    socket: str, *request: bytes
) -> AsyncIterator[tuple[Redis, list[bytes]]]:
    lost: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_server, to_server = await asyncio.open_unix_connection(socket)
        while asked := await reader.read(1 << 16):
            to_server.write(asked)
            answer = await from_server.read(1 << 16)
            if all(part in asked for part in request) and not lost:
                lost.append(answer)
                break
            writer.write(answer)
        writer.close()
        to_server.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as proxy:
        redis = connect(f"redis://127.0.0.1:{proxy.sockets[0].getsockname()[1]}")
        yield redis, lost
        await redis.aclose()


Loses = Callable[..., AbstractAsyncContextManager[tuple[Redis, list[bytes]]]]


@pytest.fixture
def loses_one_answer() -> Loses:
    """A client over a TCP proxy before the server, and what that lost: it breaks one connection after the server has
    carried out a request that holds these bytes."""
    return _loses_one_answer
