"""What a replica does while it is idle, all within the test: its coordinator, a real store and a real rank."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hubs import INFO, BareReplica
from test_audits import DOCUMENT
from test_autoprofiler import ORIGIN
from test_ranks import REQUEST, rank_for

from warpcache_ray.policy_document import Target
from warpcache_ray.policy_slots import slot_id
from warpcache_ray.serving import auditor
from warpcache_ray.serving import replica as module
from warpcache_ray.serving.artifacts import Artifacts
from warpcache_ray.serving.coordinator import Coordinator
from warpcache_ray.serving.pace import Pace
from warpcache_ray.serving.pastime import Pastime
from warpcache_ray.serving.ranks import Rank
from warpcache_ray.store.connection import connect
from warpcache_ray.store.policies import Policies, PolicyStore
from warpcache_ray.store.server import EmbeddedServer
from warpcache_ray.upkeep_config import AuditsConfig, ProfilerConfig

SOON = 60.0
SLOT = slot_id("default", DOCUMENT.key)
CONTROL = ("progress", "control", "hand_back")


class Handle:
    """Gives an object the calling convention of a Ray actor: calls of one kind follow each other in a thread."""

    def __init__(self, of: Any) -> None:
        self._of = of
        self._work, self._control = ThreadPoolExecutor(1), ThreadPoolExecutor(1)

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._of, name)
        if isinstance(self._of, Coordinator):
            return SimpleNamespace(remote=method)
        pool = self._control if name in CONTROL else self._work
        loop = asyncio.get_running_loop()
        return SimpleNamespace(remote=lambda *rest: loop.run_in_executor(pool, method, *rest))


@pytest.fixture
def rank(folders: dict[str, Path], tmp_path: Path) -> Rank:
    return rank_for(folders["wan"], str(tmp_path))


@asynccontextmanager
async def at_work(hub: Coordinator, rank: Rank) -> AsyncIterator[None]:
    """As long as the block takes, a replica with that rank."""
    replica = BareReplica()
    replica.config, replica.id, replica.failed, replica.draining = hub.config, "r1", None, False
    replica.info = INFO
    replica.attempt, replica.pace = None, Pace(20.0, 30.0, 600.0)
    replica.ranks, replica.coordinator = [Handle(rank)], Handle(hub)
    replica.pastime = Pastime(replica)
    work = asyncio.create_task(replica._work())
    yield
    replica.draining = True
    await hub.retire("r1")
    await asyncio.wait_for(work, SOON)


async def soon(found: Callable[[], Awaitable[Any]]) -> None:
    """Waits for what the idle replica brings about."""
    async with asyncio.timeout(SOON):
        while not await found():
            await asyncio.sleep(0.01)


async def submit(hub: Coordinator, prompt: str, policy: dict[str, Any], **origin: Any) -> str:
    """A job whose policy comes from there."""
    request = {**REQUEST, "prompt": prompt, "num_inference_steps": 6}
    job_id = str((await hub.submit(request, policy))["id"])
    jobs = await hub._jobs()
    await jobs.change(job_id, lambda job: replace(job, policy_origin=ORIGIN | origin))
    return job_id


async def done(hub: Coordinator, job_id: str) -> None:
    """Its video is there."""
    record = await hub.wait(job_id, SOON)
    assert record["status"] == "succeeded", record


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CLAIM_S", 0.05)
    monkeypatch.setattr(auditor, "KEPT_S", 0.0)


async def test_a_bad_policy_is_found_out(
    rank: Rank, application: str, store_server: EmbeddedServer
) -> None:
    """From jobs that were served with it, by what the rank measures: it goes, and what was kept for audits goes too."""
    config = replace(rank.config, audits=AuditsConfig(share=1.0))
    hub = Coordinator(application, config, store_server)
    policies = PolicyStore(connect(store_server.url), application)
    document = replace(DOCUMENT, target=Target("psnr", 90.0)).to_dict()
    for _ in range(2):
        await policies.publish(await policies.read(SLOT), document, "me", "test")
    coarse = {"name": "interval", "every": 5}
    origin = {"source": "registry", "slot": SLOT, "version": 2, "quality": None}
    jobs = [await submit(hub, f"cat {n}", coarse, **origin) for n in range(4)]

    async def rolled_back() -> bool:
        active = (await policies.read(SLOT)).active
        return active is not None and active.number == 1

    async with at_work(hub, rank):
        for job_id in jobs:
            await done(hub, job_id)
        await soon(rolled_back)
    newest = (await policies.history(SLOT))[0]
    assert (newest.who, newest.why[:40]) == ("audit", "promise broken: 4 of 4 audited requests ")
    assert [Artifacts(config.artifacts).names(job_id) for job_id in jobs] == [["1.mp4"]] * 4


@pytest.mark.slow
async def test_a_model_profiles_itself(
    rank: Rank, application: str, store_server: EmbeddedServer
) -> None:
    """On two jobs' prompts, while a third one comes and is served; in the end there is a canary for their size."""
    rank.config = replace(
        rank.config,
        profiler=ProfilerConfig(auto_profile=True, profile_requests=2, quality=0.5),
    )
    hub = Coordinator(application, rank.config, store_server)
    policies = PolicyStore(connect(store_server.url), application)
    first = [await submit(hub, prompt, {"name": "never"}) for prompt in ("a cat", "a dog")]

    async def found() -> Policies | None:
        keys = await policies.keys()
        return await policies.read(keys[0]) if keys else None

    async def profiling() -> bool:
        return rank._attempt.id.startswith("profile:")

    async with at_work(hub, rank):
        for job_id in first:
            await done(hub, job_id)
        await soon(profiling)
        await done(
            hub, await submit(hub, "a bird", {"name": "never"}, source="request", quality=None)
        )
        assert await found() is None
        await soon(found)
    seen = await found()
    assert seen is not None
    assert seen.canary is not None
    assert (seen.active, seen.share) == (None, 20)
    key = seen.canary.document["key"]
    assert (key["height"], key["num_frames"], key["steps"]) == (32, 5, 6)
