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
import pytest
import yaml
from processes import process_of

from warpcache_ray.access_config import digest
from warpcache_ray.demo import generate, service
from warpcache_ray.video import read_video

pytestmark = pytest.mark.slow


def totals(client: httpx.Client) -> dict[str, float]:
    lines = client.get("/metrics").text.splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if "_total" in line and line[0] != "#")
    return {name: float(value) for name, value in pairs}


LONG = {"prompt": "a cat", "seed": 0, "policy": "interval", "num_inference_steps": 100}
EXACT = LONG | {"policy": "never"}


@pytest.fixture
def toyworld(deploy: Callable[..., httpx.Client]) -> httpx.Client:
    return deploy("toyworld", "wan", lease_s=5.0, slow_step_s=5.0)


@pytest.mark.parametrize(
    ("victim", "fault"),
    [
        ("ray::Rank", signal.SIGKILL),
        ("ray::Rank", signal.SIGSTOP),
        ("ray::ServeReplica:toyworld:Replica", signal.SIGKILL),
    ],
    ids=["rank killed", "rank hung", "replica killed"],
)
def test_a_lost_worker_costs_an_attempt_not_the_job(
    toyworld: httpx.Client,
    until: Callable[..., Any],
    recovered: Callable[..., Any],
    record_property: Callable[[str, object], None],
    victim: str,
    fault: int,
) -> None:
    """A process that dies or hangs in mid-job: the job goes on at its last checkpoint on a new one, and ends with the
    bytes of a run that nothing happened to; no total falls."""
    client = toyworld
    whole = client.post("/generate", json=EXACT | {"wait": True}).json()
    job = client.post("/generate", json=EXACT).json()
    until(client, job["id"], lambda r: r["checkpoint_step"])
    before = totals(client)
    process_of(victim).send_signal(fault)
    record = recovered(client, job["id"])
    assert (record["status"], record["fence"]) == ("succeeded", 2)
    assert record["result"]["resumed_at"] >= 10
    assert record["result"]["latents_sha256"] == whole["result"]["latents_sha256"]
    after = totals(client)
    assert all(after[name] >= value for name, value in before.items())
    ends = 'warpcache_attempts_ended_total{end="lost"}'
    assert after[ends] == before[ends] + 1
    lost, made = record["attempts"]
    recovery = made["first_step_at"] - lost["seen_at"]
    counted = "warpcache_recovery_seconds_total"
    assert after[counted] - before[counted] == pytest.approx(recovery)
    record_property("recovered after", round(recovery, 2))
    used = "warpcache_useful_worker_seconds_total"
    spent = sum(a["ended_at"] - a["started_at"] for a in (lost, made))
    wasted = 'warpcache_wasted_worker_seconds_total{reason="worker_lost"}'
    both = after[used] - before[used] + after.get(wasted, 0.0) - before.get(wasted, 0.0)
    assert both == pytest.approx(spent)
    assert client.get(f"/jobs/{job['id']}/video").status_code == 200


@pytest.mark.parametrize("victim", ["ray::Coordinator", "redis-server"])
def test_running_jobs_dont_notice_a_lost_coordinator(
    toyworld: httpx.Client,
    until: Callable[..., Any],
    victim: str,
    record_property: Callable[[str, object], None],
) -> None:
    """Killed, it comes back and knows all jobs, as does its store; the one at work ends in its first attempt, one that
    waited is made after it, one that had ended is still there."""
    ended = toyworld.post("/generate", json=LONG | {"wait": True}).json()
    running = toyworld.post("/generate", json=LONG).json()
    until(toyworld, running["id"], lambda r: r["step"] > 5)
    waiting = toyworld.post("/generate", json=LONG | {"num_inference_steps": 4}).json()
    process_of(victim).kill()
    struck = time.monotonic()
    short = LONG | {"num_inference_steps": 4}
    while (later := toyworld.post("/generate", json=short)).status_code != 200:
        assert later.status_code == 503
        assert time.monotonic() - struck < 60
        time.sleep(0.05)
    record_property("takes jobs again after", round(time.monotonic() - struck, 2))
    for job in (running, waiting, later.json()):
        record = until(toyworld, job["id"], lambda r: r["finished_at"] is not None)
        assert (record["status"], record["fence"]) == ("succeeded", 1)
    assert toyworld.get(f"/jobs/{ended['id']}").json()["result"] == ended["result"]
    assert toyworld.get(f"/jobs/{ended['id']}/video").status_code == 200


def test_a_new_deployment_loses_no_step(
    deploy: Callable[..., httpx.Client],
    until: Callable[..., Any],
    record_property: Callable[[str, object], None],
) -> None:
    """A replica that is replaced in mid-job hands it back: the next one goes on at that very step, to the bytes of a
    run that nothing happened to, and the job has as many attempts left as before."""
    calm = {"lease_s": 5.0, "slow_step_s": 5.0}
    client = deploy("toyworld", "wan", **calm, drain_s=0.5)
    # So large that it can't be done before the deployment reaches the replica.
    large = EXACT | {"height": 128, "width": 128, "num_frames": 33}
    whole = client.post("/generate", json=large | {"wait": True}).json()
    job = client.post("/generate", json=large).json()
    until(client, job["id"], lambda r: r["step"] > 2)
    struck = time.monotonic()
    deploy("toyworld", "wan", **calm)
    record_property("deployed after", round(time.monotonic() - struck, 2))
    record = until(client, job["id"], lambda r: r["finished_at"] is not None)
    assert record["status"] == "succeeded"
    assert [attempt["end"] for attempt in record["attempts"]] == ["handed_back", "succeeded"]
    assert record["result"]["resumed_at"] > 2
    assert record["result"]["latents_sha256"] == whole["result"]["latents_sha256"]
    told = client.get(f"/jobs/{job['id']}/events").text
    assert "event: handed_back" in told
    assert "event: lost" not in told


def config_file(
    tmp_path: Path,
    port: int,
    change: Callable[[dict[str, Any]], None],
    host: str | None = "127.0.0.1",
) -> Path:
    """configs/toyworld.yaml on a free port, changed; with no host where none is given."""
    source = Path(__file__).parents[2] / "configs" / "toyworld.yaml"
    document = yaml.safe_load(source.read_text())
    document["http_options"] = {"port": port} | ({} if host is None else {"host": host})
    document["applications"][0]["args"]["results"] = str(tmp_path / "results")
    change(document["applications"][0]["args"])
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(document))
    return path


def serve_run(path: Path) -> subprocess.CompletedProcess[str]:
    """`serve run`, which is expected to end."""
    return subprocess.run(
        [sys.executable, "-m", "ray.serve.scripts", "run", str(path)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "RAY_AUTH_MODE": "disabled"},
    )


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
    ended = serve_run(config_file(tmp_path, free_port, change))
    assert ended.returncode != 0
    assert said in ended.stdout + ended.stderr


@pytest.mark.parametrize("host", ["0.0.0.0", None], ids=["all addresses", "no host"])
def test_serve_run_wants_keys_on_a_public_address(
    tmp_path: Path, free_port: int, host: str | None
) -> None:
    """Serve listens on all addresses where a file says so, or says nothing; without keys, `serve run` ends."""
    path = config_file(tmp_path, free_port, lambda args: None, host)
    ended = serve_run(path)
    assert ended.returncode != 0
    assert "http_options.host = '0.0.0.0' can be reached" in ended.stdout + ended.stderr


def test_serve_run_with_keys_on_a_public_address(tmp_path: Path, free_port: int) -> None:
    """It starts with keys in a file, which the replicas don't need, and wants one of every client."""
    (tmp_path / "keys.yaml").write_text(f"- {{name: alice, sha256: {digest('a key')}}}")
    access = {"keys_file": str(tmp_path / "keys.yaml")}
    path = config_file(tmp_path, free_port, lambda args: args.update(access=access), "0.0.0.0")
    with service(path, f"http://127.0.0.1:{free_port}") as client:
        assert client.post("/generate", json={"prompt": "a"}).status_code == 401
        client.headers["x-api-key"] = "a key"
        job, _ = generate(client, {"prompt": "a red circle", "seed": 1}, lambda job: None)
        assert job["status"] == "succeeded"
