"""Real faults: processes that die, configurations that can't be served."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml

from warpcache_ray.demo import generate, service
from warpcache_ray.video import read_video

pytestmark = pytest.mark.slow


def youngest_rank() -> psutil.Process:
    """The process of the rank actor that was started last."""
    ranks = [
        process
        for process in psutil.process_iter(["cmdline", "create_time"])
        if "ray::Rank" in " ".join(process.info["cmdline"] or [])
    ]
    return max(ranks, key=lambda process: process.info["create_time"])


def totals(client: httpx.Client) -> dict[str, float]:
    lines = client.get("/metrics").text.splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if "_total" in line and line[0] != "#")
    return {name: float(value) for name, value in pairs}


LONG = {"prompt": "a cat", "seed": 0, "policy": "interval", "num_inference_steps": 100}


@pytest.fixture
def toyworld(deploy: Callable[..., httpx.Client]) -> httpx.Client:
    return deploy("toyworld", "wan", lease_s=5.0)


@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "hung"])
def test_a_lost_rank_costs_an_attempt_not_the_job(
    toyworld: httpx.Client, until: Callable[..., Any], fault: int
) -> None:
    """A rank that dies or hangs in mid-job: the job runs again on a new one and ends well; no total falls."""
    client = toyworld
    job = client.post("/generate", json=LONG).json()
    until(client, job["id"], lambda r: r["step"] > 5)
    before = totals(client)
    youngest_rank().send_signal(fault)
    record = until(client, job["id"], lambda r: r["finished_at"] is not None)
    assert record["status"] == "succeeded"
    assert record["fence"] == 2
    after = totals(client)
    assert all(after[name] >= value for name, value in before.items())
    assert client.get(f"/jobs/{job['id']}/video").status_code == 200


def test_the_service_outlives_its_coordinator(
    toyworld: httpx.Client, until: Callable[..., Any]
) -> None:
    """Its memory is lost with it, and the void job's work is dropped; new jobs are taken and made."""
    import ray

    job = toyworld.post("/generate", json=LONG).json()
    until(toyworld, job["id"], lambda r: r["step"] > 5)
    actor = ray.get_actor("coordinator-toyworld", namespace="warpcache")
    ray.kill(actor, no_restart=False)
    deadline = time.monotonic() + 60
    while toyworld.get("/health").status_code != 200:
        assert time.monotonic() < deadline
        time.sleep(0.5)
    assert toyworld.get(f"/jobs/{job['id']}").status_code == 404
    short = {**LONG, "num_inference_steps": 4, "wait": True}
    assert toyworld.post("/generate", json=short).status_code == 200


def config_file(tmp_path: Path, port: int, change: Callable[[dict[str, Any]], None]) -> Path:
    """configs/toyworld.yaml on a free port, changed."""
    source = Path(__file__).parents[2] / "configs" / "toyworld.yaml"
    document = yaml.safe_load(source.read_text())
    document["http_options"]["port"] = port
    document["applications"][0]["args"]["results"] = str(tmp_path / "results")
    change(document["applications"][0]["args"])
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(document))
    return path


def test_serve_run_makes_a_video(tmp_path: Path, free_port: int) -> None:
    """`serve run configs/toyworld.yaml`, as a process of its own, makes the video that is asked for."""
    path = config_file(tmp_path, free_port, lambda args: None)
    with service(path, f"http://127.0.0.1:{free_port}") as client:
        job, video = generate(client, {"prompt": "a red circle", "seed": 1}, lambda job: None)
    assert job["cache"]["warped"] > 0
    out = tmp_path / "video.mp4"
    out.write_bytes(video)
    assert read_video(out).shape == (17, 64, 64, 3)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda args: args.update(polcy="never"), "polcy"),
        (lambda args: args["model"].update(path="no/such-model"), "model.path = 'no/such-model'"),
        (lambda args: args["model"].update(device="cuda"), "needs 1 GPUs"),
    ],
    ids=["wrong key", "missing model", "too few GPUs"],
)
def test_serve_run_ends_on_a_bad_config(
    tmp_path: Path, free_port: int, change: Callable[[dict[str, Any]], None], said: str
) -> None:
    """`serve run` does not wait for what can never be: it ends, with the field and the value in its output."""
    path = config_file(tmp_path, free_port, change)
    ended = subprocess.run(
        [sys.executable, "-m", "ray.serve.scripts", "run", str(path)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "RAY_AUTH_MODE": "disabled"},
    )
    assert ended.returncode != 0
    assert said in ended.stdout + ended.stderr
