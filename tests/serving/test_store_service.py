"""The service with a Redis server of one's own: the distribution's."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from processes import process_of
from servers import of_the_system

from warpcache_ray.store.server import EmbeddedServer

pytestmark = pytest.mark.slow

LONG = {"prompt": "a cat", "seed": 0, "policy": "never", "num_inference_steps": 100}


def test_running_jobs_go_on_without_the_store(
    deploy: Callable[..., httpx.Client], until: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    """While the server is gone the job at work makes its steps and new ones are refused with a code; when it is back,
    all that was acknowledged is there, and the job ends in its first attempt."""
    server = EmbeddedServer(tmp_path / "redis", of_the_system())
    server.start()
    try:
        client = deploy("toyworld", "wan", store={"url": server.url}, lease_s=5.0, slow_step_s=5.0)
        ended = client.post("/generate", json=LONG | {"wait": True}).raise_for_status().json()
        running = client.post("/generate", json=LONG).raise_for_status().json()["id"]
        waiting = client.post("/generate", json=LONG).raise_for_status().json()["id"]
        step = until(client, running, lambda record: record["step"] > 2)["step"]
        process_of(str(tmp_path)).kill()
        patience = time.monotonic() + 60
        while (refused := client.post("/generate", json=LONG)).status_code == 200:
            assert time.monotonic() < patience
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "unavailable")
        assert until(client, running, lambda record: record["step"] > step)["status"] == "running"
        server.start()
        for job in (running, waiting):
            record = until(client, job, lambda record: record["finished_at"] is not None)
            assert (record["status"], record["fence"]) == ("succeeded", 1)
        assert client.get(f"/jobs/{ended['id']}").json()["result"] == ended["result"]
    finally:
        server.stop()


def test_jobs_stay_in_their_store(deploy: Callable[..., httpx.Client], tmp_path: Path) -> None:
    """A deployment with another store knows nothing of them, a later one with the old store does."""
    stores = [{"folder": str(tmp_path / name)} for name in ("one", "two")]
    client = deploy("toyworld", "wan", store=stores[0])
    job = client.post("/generate", json=LONG | {"wait": True}).raise_for_status().json()["id"]
    deploy("toyworld", "wan", store=stores[1])
    assert client.get(f"/jobs/{job}").status_code == 404
    deploy("toyworld", "wan", store=stores[0])
    assert client.get(f"/jobs/{job}").raise_for_status().json()["status"] == "succeeded"
