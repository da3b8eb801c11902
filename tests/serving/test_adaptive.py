"""Quality under load: the decision as a pure function, who may be lowered how far, and a queue that is worked off."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from hubs import CONFIG, INFO, SOON, report, sample, totals
from hypothesis import given
from hypothesis import strategies as st

from warpcache_ray.config import AdaptiveConfig, Defaults, Limits, ModelConfig, ServiceConfig
from warpcache_ray.serving import adaptive
from warpcache_ray.serving.coordinator import Coordinator
from warpcache_ray.serving.schemas import GenerateRequest

FRONT = {
    "high": {"name": "auto", "max_calls": 30},
    "balanced": {"name": "auto", "max_calls": 20},
    "fast": {"name": "auto", "max_calls": 10},
}
MODEL = ModelConfig(
    "x", device="cpu", defaults=Defaults(num_inference_steps=40), limits=Limits(queue=100)
)
ADAPTIVE = ServiceConfig(
    MODEL,
    policy=FRONT["high"],
    quality=FRONT,
    adaptive_quality=AdaptiveConfig({"normal": "fast", "low": "balanced"}, target_wait_s=60),
)


@pytest.mark.parametrize(
    ("wait_s", "chosen"),
    [(0, None), (60, None), (61, 0), (90, 0), (91, 1), (180, 1), (181, 1), (1e6, 1)],
)
def test_the_best_that_brings_the_queue_back(wait_s: float, chosen: int | None) -> None:
    """From 30 calls to 20 the queue takes two thirds, to 10 one third; beyond that it is the floor."""
    assert adaptive.choose([20 / 40, 10 / 40], 30 / 40, wait_s, 60) == chosen


@given(st.lists(st.floats(0.05, 1), max_size=3), st.floats(0, 1e5), st.floats(0, 1e5))
def test_a_longer_queue_never_means_a_better_quality(
    shares: Sequence[float], some: float, more: float
) -> None:
    shares = sorted(shares, reverse=True)
    first, second = (adaptive.choose(shares, 1.0, wait, 60) for wait in sorted((some, some + more)))
    assert (-1 if first is None else first) <= (-1 if second is None else second)


@pytest.mark.parametrize(
    ("asked", "allowed"),
    [
        ({}, {"quality_floor": "fast"}),
        ({"quality": "high"}, {"quality": "high", "quality_floor": "fast"}),
        ({"quality": "high", "priority": "low"}, {"quality": "high", "quality_floor": "balanced"}),
        ({"quality": "high", "priority": "high"}, {}),
        (
            {"quality": "high", "quality_floor": "high"},
            {"quality": "high", "quality_floor": "high"},
        ),
        ({"quality": "exact"}, {}),
        (
            {"quality": "exact", "quality_floor": "high"},
            {"quality": "exact", "quality_floor": "high"},
        ),
        ({"policy": "never"}, {}),
        ({"policy": "never", "quality_floor": "fast"}, {"quality_floor": "fast"}),
        ({"priority": "low", "quality_floor": "fast"}, {"quality_floor": "balanced"}),
    ],
    ids=str,
)
def test_who_may_be_lowered(asked: dict[str, Any], allowed: dict[str, Any]) -> None:
    """Down to the higher one of the operator's floor for the priority and the client's; what is exact, or has a policy
    of its own, only where the client says so; nobody where the operator names no floor."""
    request = GenerateRequest(prompt="a", **asked)
    assert adaptive.allowance(request, ADAPTIVE) == allowed
    assert adaptive.allowance(request, CONFIG) == {}


Claimed = dict[str, Any]


@pytest.fixture
async def queue(
    hub: Coordinator, lonely: httpx.AsyncClient, api_of: Callable[[Coordinator], FastAPI]
) -> Callable[..., Any]:
    """Sends requests to a service that has learned what a job costs: 100 s for 30 of 40 calls."""
    await hub.configure(ADAPTIVE)
    await hub.claim("replica_1", INFO, 0.01)
    api = httpx.ASGITransport(api_of(hub))
    client = httpx.AsyncClient(transport=api, base_url="http://test")

    async def send(*bodies: dict[str, Any]) -> list[str]:
        answers = [await client.post("/generate", json={"prompt": "a", **b}) for b in bodies]
        assert [answer.status_code for answer in answers] == [200] * len(bodies)
        return [answer.json()["id"] for answer in answers]

    (first,) = await send({})
    await hub.claim("replica_1", INFO, SOON)
    await hub.finish(first, 1, {}, None)
    hub.rates.seen["auto"][0] = 100 / 30
    hub.rates.heard += 1
    return send


async def made(hub: Coordinator) -> Claimed:
    """What the next job is made with, by its record; then it ends."""
    claimed = await hub.claim("replica_1", INFO, SOON)
    assert claimed is not None
    record = await hub.get(claimed["job_id"])
    assert record["policy"]["max_calls"] == claimed["policy"]["max_calls"]
    await hub.finish(claimed["job_id"], claimed["fence"], {}, None)
    hub.rates.seen["auto"].clear()
    hub.rates.seen["auto"].append(100 / 30)
    return record


async def test_down_under_a_queue_and_up_again(hub: Coordinator, queue: Any) -> None:
    """Five jobs of 100 s each on one replica: the first ones are made fast, and as the queue gets shorter each gets
    what still keeps the target; each record says what it was given, and its version is that policy's own."""
    names = await queue(*[{"quality": "high"}] * 5)
    records = [await made(hub) for _ in names]
    assert [record["id"] for record in records] == names
    given_up = [(record["lowered_to"], record["policy"]["max_calls"]) for record in records]
    assert given_up == [("fast", 10)] * 5
    await hub.configure(
        replace(ADAPTIVE, adaptive_quality=replace(ADAPTIVE.adaptive_quality, target_wait_s=150))
    )
    names = await queue(*[{"quality": "high"}] * 3)
    records = [await made(hub) for _ in names]
    assert [record["lowered_to"] for record in records] == ["fast", "balanced", None]
    assert len({record["policy_version"] for record in records}) == 3
    assert sample(hub, "warpcache_jobs_lowered_total", quality="balanced") == 1
    assert records[0]["request"]["quality"] == "high"


async def test_exact_stays_exact(hub: Coordinator, queue: Any) -> None:
    """However long the queue; the operator's floor holds for those without a wish."""
    await queue({"quality": "exact"}, *[{}] * 9)
    claimed = await hub.claim("replica_1", INFO, SOON)
    assert claimed is not None
    assert claimed["policy"]["name"] == "never"
    assert (await hub.get(claimed["job_id"]))["lowered_to"] is None
    other = await hub.claim("replica_2", INFO, SOON)
    assert other is not None
    assert (await hub.get(other["job_id"]))["lowered_to"] == "fast"


async def test_lower_classes_wait_for_higher_ones_not_the_other_way(
    hub: Coordinator, queue: Any
) -> None:
    """A queue of low priority lowers low ones, and no normal one."""
    await queue(*[{"priority": "low"}] * 9, {"quality": "high", "priority": "normal"})
    await hub.configure(
        replace(ADAPTIVE, adaptive_quality=replace(ADAPTIVE.adaptive_quality, target_wait_s=100))
    )
    assert (await made(hub))["lowered_to"] is None
    assert (await made(hub))["lowered_to"] == "balanced"


async def test_a_later_attempt_goes_on_with_what_the_first_one_had(
    hub: Coordinator, queue: Any
) -> None:
    """Its checkpoint is of that policy: neither lowered nor raised any more."""
    (whole,) = await queue({"quality": "high"})
    await hub.configure(
        replace(ADAPTIVE, adaptive_quality=replace(ADAPTIVE.adaptive_quality, target_wait_s=100))
    )
    claimed = await hub.claim("replica_1", INFO, SOON)
    assert claimed is not None
    await report(hub, whole, 1, totals(2, kept=2))
    await hub.hand_back(whole, 1)
    await queue(*[{}] * 9)
    again = await hub.claim("replica_2", INFO, SOON)
    assert again is not None
    assert (again["job_id"], again["policy"]["max_calls"]) == (whole, 30)


async def test_nothing_is_lowered_by_guesses(hub: Coordinator) -> None:
    """Until a job has ended nobody knows how long the queue takes."""
    await hub.configure(ADAPTIVE)
    request = {"prompt": "a", "num_inference_steps": 40, "quality_floor": "fast"}
    job = await hub.submit(request, {"name": "never"})
    kept = (await hub.get(job["id"])) | {}
    claimed = await hub.claim("replica_1", INFO, SOON)
    assert claimed is not None
    assert claimed["policy"] == {"name": "never"}
    assert kept["lowered_to"] is None
