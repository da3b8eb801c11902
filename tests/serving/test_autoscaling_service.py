"""Autoscaling as it is in service: a real Ray Serve, a real model, the shipped Serve file with shorter delays."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

CONFIG = Path(__file__).parents[2] / "configs" / "toyworld-scaled.yaml"
NAME = "scaled"
SOON_S = 200.0
JOB = {
    "prompt": "a red circle moving right fast over a blue background",
    "seed": 0,
    "policy": "never",
}
LARGE = {"height": 128, "width": 128, "num_frames": 33, "num_inference_steps": 100}
"""So long that it can't be done before a replica goes."""


@pytest.fixture(scope="module")
def scaled(ray_port: int, tmp_path_factory: pytest.TempPathFactory) -> httpx.Client:
    """As `serve deploy FILE` deploys it."""
    from ray.serve.context import _get_global_client
    from ray.serve.schema import ServeDeploySchema

    document = yaml.safe_load(CONFIG.read_text())
    (app,) = document["applications"]
    app |= {"name": NAME, "route_prefix": f"/{NAME}"}
    app["autoscaling_policy"]["policy_kwargs"] = {"target_wait_s": 4}
    results = str(tmp_path_factory.mktemp("scaled"))
    app["args"] |= {"drain_s": 0.5, "results": results}
    delays = {"upscale_delay_s": 0, "downscale_delay_s": 3, "downscale_to_zero_delay_s": 6}
    app["deployments"][0]["autoscaling_config"] |= delays
    client = _get_global_client()
    client.deploy_apps(ServeDeploySchema.model_validate({"applications": [app]}))
    return httpx.Client(base_url=f"http://127.0.0.1:{ray_port}/{NAME}", timeout=60)


def replicas(client: httpx.Client) -> int | None:
    """How many were heard of lately; None while nobody can tell."""
    answer = client.get("/health")
    return answer.json().get("replicas") if answer.status_code in (200, 503) else None


def wait_for(condition: Callable[[], bool], what: str) -> float:
    """Seconds until it holds."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < SOON_S, what
        time.sleep(0.2)
    return time.monotonic() - began


def test_none_to_two_and_back_and_no_job_is_lost(
    scaled: httpx.Client,
    until: Callable[..., Any],
    record_property: Callable[[str, object], None],
) -> None:
    """A long job and three that wait make two replicas out of one; when these are done a replica goes, and the long one
    goes on, wherever it was; without jobs none is left, and still a new job is taken in, and made."""
    wait_for(lambda: scaled.get("/health").status_code == 200, "the first replica")
    long, *jobs = [
        scaled.post("/generate", json=body).json()["id"] for body in (JOB | LARGE, JOB, JOB, JOB)
    ]
    record_property("two replicas after", round(wait_for(lambda: replicas(scaled) == 2, "two"), 1))
    records = [until(scaled, job, lambda r: r["finished_at"] is not None) for job in jobs]
    assert [record["status"] for record in records] == ["succeeded"] * 3
    record_property("one replica after", round(wait_for(lambda: replicas(scaled) == 1, "one"), 1))
    step = scaled.get(f"/jobs/{long}").json()["step"]
    records.append(until(scaled, long, lambda r: r["step"] > step + 1))
    assert records[-1]["status"] == "running"
    attempts = [attempt for record in records for attempt in record["attempts"]]
    assert {attempt["end"] for attempt in attempts} <= {"succeeded", "handed_back", None}
    assert len({attempt["replica"] for attempt in attempts}) == 2
    scaled.delete(f"/jobs/{long}")
    record_property("none after", round(wait_for(lambda: replicas(scaled) == 0, "none"), 1))
    asleep = scaled.get("/health")
    assert (asleep.status_code, asleep.json()["status"]) == (200, "asleep")
    woken = scaled.post("/generate", json=JOB | {"num_inference_steps": 4}).json()["id"]
    began = time.monotonic()
    assert until(scaled, woken, lambda r: r["finished_at"])["status"] == "succeeded"
    record_property("woken, and the job made, after", round(time.monotonic() - began, 1))
