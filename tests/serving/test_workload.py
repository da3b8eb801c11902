"""What the coordinator tells of the work, from records."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from typing import Any

import httpx
import pytest
from hubs import CONFIG, INFO, claim, submit

from warpcache_ray.parallel.layout import Layout
from warpcache_ray.serving import lifecycle
from warpcache_ray.serving.admission import Rates
from warpcache_ray.serving.attempts import Progress
from warpcache_ray.serving.autoscaling import Work
from warpcache_ray.serving.coordinator import Coordinator
from warpcache_ray.serving.lifecycle import Job
from warpcache_ray.serving.workload import workload

RATES = Rates({"never": deque([1.0]), "auto": deque([1.0])})
PAIR = replace(CONFIG, parallel=Layout(ulysses=2), gpu_second_price=0.5)


def job(name: str, policy: dict[str, Any], steps: int = 40) -> Job:
    return Job(name, {"num_frames": 1, "num_inference_steps": steps}, policy, 0.0)


def test_seconds_are_those_of_all_ranks_and_of_the_policys_calls() -> None:
    """A job that makes a quarter of the calls weighs a quarter; of a running one what is left counts, of one that was
    handed back what its next attempt has to make."""
    exact, cheap = job("a", {"name": "never"}), job("b", {"name": "auto", "max_calls": 10})
    running = lifecycle.claim(job("c", {"name": "never"}), "r", 0, now=0.0)
    running = lifecycle.report(running, 1, Progress(10, 40), now=20.0)
    back = lifecycle.claim(job("d", {"name": "never"}), "r", 0, now=0.0)
    back = lifecycle.report(back, 1, Progress(20, 40, checkpoint_step=20), now=1.0)
    back = lifecycle.hand_back(back, 1, 1, now=2.0)
    assert workload([exact, cheap, running, back], RATES, PAIR, True, now=20.0) == {
        "queued_jobs": 3,
        "queued_gpu_s": pytest.approx(2 * (40 + 10 + 20)),
        "running_jobs": 1,
        "remaining_gpu_s": pytest.approx(2 * 60),
        "costs_known": 1,
        "model_known": 1,
        "ranks": 2,
        "gpu_second_price": 0.5,
    }


def test_the_policy_reads_what_is_told() -> None:
    """Name for name, all of it numbers, as Serve wants them."""
    told = workload([], Rates(), CONFIG, False, 0.0)
    assert set(told) == set(Work._fields)
    assert all(isinstance(value, int | float) for value in told.values())
    assert (told["costs_known"], told["model_known"]) == (0, 0)


async def test_a_service_that_sleeps_takes_jobs(
    hub: Coordinator, lonely: httpx.AsyncClient
) -> None:
    """With `replicas: auto` what the last replica could make still holds when it has gone; else it doesn't; and with
    another model it is forgotten."""
    await submit(hub)
    assert (await hub.health())["model"] is None
    assert (await lonely.post("/generate", json={"prompt": "a"})).status_code == 503
    assert (await hub.workload())["model_known"] == 0
    await hub.configure(replace(CONFIG, replicas="auto"))
    await claim(hub, "replica_9")
    await hub.retire("replica_9")
    health = await hub.health()
    assert (health["replicas"], health["model"]) == ({}, INFO)
    asleep = await lonely.get("/health")
    assert (asleep.status_code, asleep.json()["status"]) == (200, "asleep")
    assert (await lonely.post("/generate", json={"prompt": "a"})).status_code == 200
    told = await hub.workload()
    assert (told["running_jobs"], told["model_known"]) == (1, 1)
    await hub.configure(CONFIG)
    assert (await hub.health())["model"] is None
    assert (await lonely.get("/health")).status_code == 503
    other = replace(CONFIG, replicas="auto", model=replace(CONFIG.model, path="y"))
    await hub.configure(other)
    assert (await hub.health())["model"] is None
