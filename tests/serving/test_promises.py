"""What is published once stays so: a worker that dies with the video in hand, and one that comes back from the dead."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from warpcache_ray.serving.handles import NAMESPACE

pytestmark = pytest.mark.slow

Until = Callable[..., dict[str, Any]]
LONG = {"prompt": "a cat", "seed": 0, "policy": "never", "num_inference_steps": 100}
DRIVER = "ray::ServeReplica:toyworld:Replica"


def first_rank() -> Any:
    """Handle of the only replica's rank."""
    import ray

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    (name,) = (
        known["name"]
        for known in ray.util.list_named_actors(all_namespaces=True)
        if known["name"].startswith("toyworld-replica_")
    )
    return ray.get_actor(name, NAMESPACE)


def hold_the_video(rank: Any) -> None:
    """From now on this process writes its videos, and tells nobody."""
    publish = rank._publish

    def held(*of: Any) -> None:
        publish(*of)
        time.sleep(3600)

    rank._publish = held


def drivers() -> list[psutil.Process]:
    """The processes of the service's replicas."""
    found = psutil.process_iter(["cmdline"])
    return [process for process in found if DRIVER in " ".join(process.info["cmdline"] or [])]


def ends_of(client: httpx.Client, job: str) -> list[str]:
    """The ends that the followers of a job were told."""
    lines = client.get(f"/jobs/{job}/events").text.splitlines()
    kinds = [line.removeprefix("event: ") for line in lines if line.startswith("event: ")]
    return [kind for kind in kinds if kind in ("succeeded", "failed", "cancelled")]


def videos_of(job: str, results: Path) -> list[Path]:
    """All that lies where results do."""
    return [path for path in results.rglob("*.mp4") if job in str(path)]


def lost_of(client: httpx.Client, jobs: list[str]) -> str:
    """The first of the jobs whose attempt is given up."""
    patience = time.monotonic() + 60
    while time.monotonic() < patience:
        records = [client.get(f"/jobs/{job}").json() for job in jobs]
        lost = [r["id"] for r in records if r["fence"] > 1 or r["status"] == "queued"]
        if lost:
            return str(lost[0])
        time.sleep(0.05)
    pytest.fail("no job was given up")


def test_killed_between_the_video_and_its_publication(
    deploy: Callable[..., httpx.Client], until: Until, tmp_path: Path
) -> None:
    """Nobody was told of the video, so another attempt makes it: one publication, and the same bytes."""
    import ray

    client = deploy("toyworld", "wan", lease_s=5.0, slow_step_s=5.0, results=str(tmp_path))
    whole = client.post("/generate", json=LONG | {"wait": True}).raise_for_status().json()
    ray.get(first_rank().__ray_call__.remote(hold_the_video))
    job = client.post("/generate", json=LONG).json()["id"]
    until(client, job, lambda record: record["step"] == 100)
    patience = time.monotonic() + 60
    while not videos_of(job, tmp_path):
        assert time.monotonic() < patience
        time.sleep(0.05)
    assert client.get(f"/jobs/{job}").json()["status"] == "running"
    for driver in drivers():
        driver.kill()
    record = until(client, job, lambda record: record["finished_at"] is not None)
    assert (record["status"], record["fence"]) == ("succeeded", 2)
    assert record["result"]["latents_sha256"] == whole["result"]["latents_sha256"]
    assert ends_of(client, job) == ["succeeded"]
    assert client.get(f"/jobs/{job}/video").raise_for_status().content
    client.delete(f"/v1/videos/{job.replace('job_', 'video_')}").raise_for_status()
    assert not videos_of(job, tmp_path)


def test_an_attempt_that_runs_on_after_the_takeover(
    deploy: Callable[..., httpx.Client], until: Until, tmp_path: Path
) -> None:
    """A replica falls silent, another one takes its job over, then it comes back with its video: that is thrown away,
    the job's end is the other's, and the replica works on."""
    client = deploy(
        "toyworld", "wan", lease_s=5.0, slow_step_s=5.0, replicas=2, results=str(tmp_path)
    )
    jobs = [client.post("/generate", json=LONG).json()["id"] for _ in range(2)]
    for job in jobs:
        until(client, job, lambda record: record["step"] > 0)
    silent = drivers()[0]
    silent.send_signal(signal.SIGSTOP)
    try:
        lost = lost_of(client, jobs)
        taken = until(client, lost, lambda record: record["fence"] == 2 and record["step"] > 0)
    finally:
        silent.send_signal(signal.SIGCONT)
    record = until(client, lost, lambda record: record["finished_at"] is not None)
    assert (record["status"], record["fence"]) == ("succeeded", 2)
    assert record["replica"] == taken["replica"]
    assert ends_of(client, lost) == ["succeeded"]
    more = [client.post("/generate", json=LONG).json()["id"] for _ in range(2)]
    records = [until(client, job, lambda record: record["step"] > 0) for job in more]
    assert len({record["replica"] for record in records}) == 2
    assert len(videos_of(lost, tmp_path)) == 1
    for job in more:
        until(client, job, lambda record: record["finished_at"] is not None)
