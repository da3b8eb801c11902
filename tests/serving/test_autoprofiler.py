"""The coordinator's part of profiling by itself, over a real store."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hubs import CONFIG, INFO, claim
from test_audits import DOCUMENT

from warpcache_ray.serving.coordinator import Coordinator
from warpcache_ray.store.connection import connect
from warpcache_ray.store.policies import PolicyStore
from warpcache_ray.store.server import EmbeddedServer
from warpcache_ray.upkeep_config import ProfilerConfig

ITSELF = replace(CONFIG, profiler=ProfilerConfig(auto_profile=True, profile_requests=2))
ORIGIN = {"source": "configuration", "quality": "default", "slot": None, "version": None}
FOUND = replace(DOCUMENT, provenance={"prompts": 2})
SLOT = f"default-{DOCUMENT.key.digest.removeprefix('sha256:')}"


@pytest.fixture
def itself(application: str, store_server: EmbeddedServer) -> Coordinator:
    return Coordinator(application, ITSELF, store_server)


@pytest.fixture
def policies(application: str, store_server: EmbeddedServer) -> PolicyStore:
    return PolicyStore(connect(store_server.url), application)


async def serve(hub: Coordinator, *prompts: str) -> None:
    """Jobs for these prompts, whose policy the configuration has."""
    for prompt in prompts:
        job_id = (await hub.submit({"prompt": prompt, "height": 32}, {"name": "auto"}))["id"]
        jobs = await hub._jobs()
        await jobs.change(job_id, lambda job: replace(job, policy_origin=ORIGIN))
        _, fence = await claim(hub)
        await hub.finish(job_id, fence, {"path": "/v.mp4"}, None)


async def ask(hub: Coordinator, method: str, *rest: Any, replica: str = "idle") -> Any:
    """What an idle replica hears."""
    hub.fleet.hear(replica, INFO)
    return await hub.upkeep("profiles", method, replica, *rest)


async def test_the_first_requests_are_profiled(itself: Coordinator, policies: PolicyStore) -> None:
    """Once there are enough, by one replica at a time, whose policy comes as a canary; then never again."""
    await serve(itself, "a")
    assert await ask(itself, "next") is None
    await serve(itself, "b")
    task = await ask(itself, "next")
    assert task["prompts"] == ["a", "b"]
    assert (task["arguments"], task["quality"]) == ({"height": 32}, 0.99)
    assert await ask(itself, "next", replica="other") is None
    await ask(itself, "found", task["group"], FOUND.to_dict())
    seen = await policies.read(SLOT)
    assert seen.active is None
    assert seen.canary is not None
    assert (seen.canary.document, seen.share) == (json.loads(json.dumps(FOUND.to_dict())), 20)
    [change] = await policies.history(SLOT)
    assert (change.who, change.why) == (
        "auto_profile",
        "profiled on the first 2 requests for SSIM of 0.99",
    )
    assert await ask(itself, "next") is None
    [event] = (await itself.upkeep("audits", "describe"))["events"]
    assert (event["event"], event["slot"], event["calls"]) == ("profiled", SLOT, 6)


async def test_a_job_comes_first(itself: Coordinator) -> None:
    """None is begun while one waits; what was left off for it is gone on with by the same replica, however often."""
    await serve(itself, "a", "b")
    task = await ask(itself, "next")
    for _ in range(5):
        job_id = (await itself.submit({"prompt": "c"}, {"name": "never"}))["id"]
        await ask(itself, "left", task["group"])
        assert await ask(itself, "next") is None
        _, fence = await claim(itself)
        await itself.finish(job_id, fence, {"path": "/v.mp4"}, None)
        assert await ask(itself, "next", replica="other") is None
        assert (await ask(itself, "next"))["group"] == task["group"]


async def test_plans_outlive_coordinator_and_replica(
    itself: Coordinator, application: str, store_server: EmbeddedServer
) -> None:
    """The same prompts, whatever was served since; though a model that replicas die of isn't tried for ever."""
    await serve(itself, "a", "b")
    task = await ask(itself, "next")
    await serve(itself, "c")
    again = Coordinator(application, ITSELF, store_server)
    await again.health()
    for replica in ("r1", "r2", "r3"):
        assert await ask(again, "next", replica=replica) == task
        again.fleet._heard.pop(replica)
    assert await ask(again, "next", replica="r4") is None


async def test_a_quality_out_of_reach_is_told(itself: Coordinator, policies: PolicyStore) -> None:
    """Nothing is published, and it isn't tried again."""
    await serve(itself, "a", "b")
    task = await ask(itself, "next")
    await ask(itself, "failed", task["group"], {"message": "quality: can't be expected"})
    assert await ask(itself, "next") is None
    assert await policies.keys() == []
    [event] = (await itself.upkeep("audits", "describe"))["events"]
    assert (event["event"], event["why"]) == ("failed", "quality: can't be expected")


async def test_what_is_published_stays(itself: Coordinator, policies: PolicyStore) -> None:
    """A slot that somebody has published for meanwhile is theirs."""
    await serve(itself, "a", "b")
    task = await ask(itself, "next")
    await policies.publish(await policies.read(SLOT), DOCUMENT.to_dict(), "me", "mine")
    await ask(itself, "found", task["group"], FOUND.to_dict())
    seen = await policies.read(SLOT)
    assert (seen.revision, seen.canary) == (1, None)
