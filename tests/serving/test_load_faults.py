"""The promise that matters most, counted: under load, whichever process is killed, no acknowledged job is lost and
none is published twice."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from load import load
from processes import process_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

LOAD = ["--rate=0.7", "--steps=50,100", "--warmup=0", "--cancel-share=0.2", "--cancel-within=1"]
LOAD += ["--seed=3"]
VICTIMS = {
    "rank": "ray::Rank",
    "replica": "ray::ServeReplica:toyworld:Replica",
    "coordinator": "ray::Coordinator",
    "store": "redis-server",
    "ingress": "ray::ServeReplica:toyworld:Ingress",
    "proxy": "ray::ProxyActor",
    "controller": "ray::ServeController",
}
SOON_S = 90.0


def jobs(client: httpx.Client) -> dict[str, int]:
    """How many jobs there are by status, as soon as the service can tell."""
    until = time.monotonic() + SOON_S
    while time.monotonic() < until:
        try:
            answer = client.get("/health", timeout=5)
        except httpx.TransportError:
            time.sleep(0.2)
            continue
        if answer.status_code in (200, 503) and "jobs" in answer.text:
            counted: dict[str, int] = answer.json()["jobs"]
            return counted
        time.sleep(0.2)
    pytest.fail(f"the service is not back after {SOON_S} s")


def await_jobs(client: httpx.Client, wanted: Callable[[dict[str, int]], bool]) -> None:
    until = time.monotonic() + SOON_S
    while not wanted(counted := jobs(client)):
        assert time.monotonic() < until, counted
        time.sleep(0.1)


def test_no_process_takes_a_job_with_it(
    deploy: Callable[..., httpx.Client],
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    """Each kind of process is killed in turn while jobs run and wait, as soon as jobs end again after the one before.
    At the end every acknowledged job has one end, told once, and a video if it succeeded; no job was made for a
    request that had one already, however often its client had to send it."""
    client = deploy("toyworld", "wan", lease_s=5.0, slow_step_s=5.0)
    before = jobs(client)
    account = tmp_path / "load.json"
    with load(str(client.base_url), account, LOAD) as locust:
        for kind, name in VICTIMS.items():
            await_jobs(client, lambda now: now["running"] > 0)
            process_of(name).kill()
            struck, done = time.monotonic(), jobs(client)["succeeded"]
            await_jobs(client, lambda now, done=done: now["succeeded"] > done)  # type: ignore[misc]
            record_property(f"videos again after {kind}", round(time.monotonic() - struck, 1))
    summary: dict[str, Any] = json.loads(account.read_text())
    counted = summary["jobs"]
    record_property("jobs", {name: n for name, n in counted.items() if isinstance(n, int)})
    record_property("job_run", summary["stages"]["job_run"])
    assert locust.returncode == 0, counted
    assert (counted["lost"], counted["twice"], counted["unfinished"]) == (0, 0, 0)
    ended = counted["succeeded"] + counted["failed"] + counted["cancelled"]
    assert counted["acknowledged"] == ended > len(VICTIMS)
    assert min(counted["succeeded"], counted["cancelled"]) > 0
    assert counted["without_video"] == 0
    assert set(counted["failed_by_code"]) <= {"worker_lost"}
    assert sum(jobs(client).values()) - sum(before.values()) == counted["acknowledged"]
    # The faults were felt: attempts were lost, and requests met a service that wasn't there.
    assert counted["attempts"] > counted["succeeded"]
    assert counted["requests_resent"] > 0
