"""A real Ray with Serve on this machine, shared by all tests of the service."""

from __future__ import annotations

import os
import socket
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import yaml
from fastapi import FastAPI
from hubs import CONFIG, INFO

from warpcache_ray.serving import coordinator
from warpcache_ray.serving.coordinator import Coordinator
from warpcache_ray.serving.ingress import build_api
from warpcache_ray.store.server import EmbeddedServer

CONFIGS = Path(__file__).parents[2] / "configs"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def arguments_of(name: str) -> dict[str, Any]:
    """The `args` of one of our configurations."""
    document = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    args: dict[str, Any] = document["applications"][0]["args"]
    return args


@pytest.fixture
def free_port() -> int:
    """A port that was free a moment ago."""
    return _free_port()


@pytest.fixture
def grpc_port() -> int:
    """Another one."""
    return _free_port()


@pytest.fixture(scope="session")
def ray_port() -> Iterator[int]:
    """HTTP port of a local Ray Serve."""
    os.environ["RAY_AUTH_MODE"] = "disabled"
    import ray
    from ray import serve

    port = _free_port()
    ray.init(address="local", num_cpus=10, include_dashboard=False, log_to_driver=False)
    serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
    yield port
    serve.shutdown()
    ray.shutdown()


Deploy = Callable[..., httpx.Client]
Until = Callable[[httpx.Client, str, Callable[[dict[str, Any]], bool]], dict[str, Any]]


@pytest.fixture(scope="session")
def until() -> Until:
    """Polls a job until its record is as wanted."""

    def poll(
        client: httpx.Client, job: str, wanted: Callable[[dict[str, Any]], bool]
    ) -> dict[str, Any]:
        for _ in range(2400):
            answer = client.get(f"/jobs/{job}")
            # 503: the coordinator is coming back.
            assert answer.status_code in (200, 503), answer.text
            record: dict[str, Any] = answer.json()
            if answer.status_code == 200 and wanted(record):
                return record
            time.sleep(0.05)
        pytest.fail(f"the job never got there: {record}")

    return poll


@pytest.fixture
def recovered(
    until: Until, record_property: Callable[[str, object], None]
) -> Callable[[httpx.Client, str], dict[str, Any]]:
    """Follows a job whose worker was struck just now to its end; notes when that was found and when work went on."""

    def follow(client: httpx.Client, job: str) -> dict[str, Any]:
        struck = time.monotonic()
        until(client, job, lambda r: r["status"] == "queued")
        record_property("found after", round(time.monotonic() - struck, 2))
        until(client, job, lambda r: r["fence"] == 2 and r["step"] > 0)
        record_property("at work again after", round(time.monotonic() - struck, 2))
        return until(client, job, lambda r: r["finished_at"] is not None)

    return follow


@pytest.fixture(scope="session")
def deploy(
    ray_port: int, folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deploy]:
    """Serves one of our configurations with its model swapped for a tiny one (or for that in a folder of another one)
    and its GPUs for one CPU; with other changes than before, it is deployed anew."""
    from ray import serve

    from warpcache_ray.serving.app import build

    clients: dict[str, httpx.Client] = {}
    deployed: dict[str, Any] = {}
    results = tmp_path_factory.mktemp("results")

    def run(config: str, model: str, **changes: Any) -> httpx.Client:
        if deployed.get(config) != (model, changes):
            deployed[config] = (model, changes)
            args = arguments_of(config)
            small = {"height": 32, "width": 32, "num_frames": 9, "num_inference_steps": 8, "fps": 8}
            args["model"] |= {
                "path": str(folders.get(model, model)),
                "device": "cpu",
                "dtype": "float32",
                "defaults": small,
            }
            args |= {"parallel": {}, "results": str(results / config), **changes}
            serve.run(build(args), name=config, route_prefix=f"/{config}")
        if config not in clients:
            base = f"http://127.0.0.1:{ray_port}/{config}"
            clients[config] = httpx.Client(base_url=base, timeout=240)
        return clients[config]

    yield run
    for client in clients.values():
        client.close()


class Actor:
    """Gives a coordinator's methods the calling convention of a Ray handle."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=getattr(self._coordinator, name))


@pytest.fixture(scope="session")
def api_of() -> Callable[[Coordinator], FastAPI]:
    """The routes over a coordinator in this process."""
    return lambda coordinator: build_api(coordinator.config, Actor(coordinator))


@pytest.fixture
def application() -> str:
    """A name of which the store knows nothing yet."""
    return uuid.uuid4().hex


@pytest.fixture
def hub(application: str, store_server: EmbeddedServer) -> Coordinator:
    """A coordinator within the test."""
    return Coordinator(application, CONFIG, store_server)


@pytest.fixture
async def reaped(monkeypatch: pytest.MonkeyPatch, hub: Coordinator) -> Coordinator:
    """One whose reaper never rests."""
    monkeypatch.setattr(coordinator, "REAP_S", 0.01)
    return hub


@pytest.fixture
async def lonely(
    hub: Coordinator, api_of: Callable[[Coordinator], FastAPI]
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a service without replicas."""
    transport = httpx.ASGITransport(api_of(hub), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


@pytest.fixture
async def client(hub: Coordinator, lonely: httpx.AsyncClient) -> httpx.AsyncClient:
    """A client of a service with one idle replica."""
    await hub.claim("replica_1", INFO, 0.01)
    return lonely
