"""The coordinator's part of audits, over a real store: what idle replicas are given, what is counted, what follows."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from hubs import CONFIG, INFO, SOON, claim, sample
from test_audits import DOCUMENT

from warpcache_ray.errors import Unavailable
from warpcache_ray.policy_document import parse_document
from warpcache_ray.serving import auditor
from warpcache_ray.serving.coordinator import Coordinator
from warpcache_ray.store.audits import AuditStore
from warpcache_ray.store.connection import connect
from warpcache_ray.store.keys import Keys
from warpcache_ray.store.policies import ALL, Change, Policies, PolicyStore
from warpcache_ray.store.server import EmbeddedServer
from warpcache_ray.upkeep_config import AuditsConfig

SLOT = "default-0123456789abcdef"
GOOD, BAD = (40.0, 0.999), (20.0, 0.8)
EVERY = replace(CONFIG, audits=AuditsConfig(share=1.0))
ENOUGH = 4
"""Misses in a row that break the document's promise of 90 %."""
PROVEN = 40
"""Requests without a miss that prove it."""


class Service:
    """A coordinator that audits all, its store of policies, and idle replicas by hand."""

    def __init__(self, hub: Coordinator, server: EmbeddedServer) -> None:
        self.hub = hub
        self.redis = connect(server.url)
        self.policies = PolicyStore(self.redis, hub.application)

    async def publish(self, calls: int, share: int = ALL) -> int:
        """A version of so many calls."""
        document = replace(DOCUMENT, policy={**DOCUMENT.policy, "max_calls": calls})
        seen = await self.read()
        return await self.policies.publish(seen, document.to_dict(), "me", "test", share)

    async def read(self) -> Policies:
        """What is in force."""
        return await self.policies.read(SLOT)

    async def serve(self, version: int | None, source: str = "registry") -> str:
        """The id of a job that this version has served."""
        job_id = (await self.hub.submit({"prompt": "a"}, {"name": "auto"}))["id"]
        origin = {"source": source, "slot": SLOT if version else None, "version": version}
        jobs = await self.hub._jobs()
        await jobs.change(job_id, lambda job: replace(job, policy_origin=origin))
        _, fence = await claim(self.hub)
        assert await self.hub.finish(job_id, fence, {"path": f"/r/{job_id}/1.mp4"}, None)
        return str(job_id)

    async def next(self, replica: str = "idle") -> str | None:
        """The job that a replica is to audit."""
        assert await self.hub.claim(replica, INFO, 0.01) is None
        task = await self.hub.upkeep("audits", "next", replica)
        return None if task is None else str(task["job_id"])

    async def audit(self, *qualities: tuple[float, float]) -> None:
        """Audits of as many jobs as there are qualities to find."""
        for quality in qualities:
            job_id = await self.next()
            assert job_id is not None
            await self.hub.upkeep("audits", "found", "idle", job_id, *quality)

    async def served_and_audited(self, version: int, *qualities: tuple[float, float]) -> None:
        """The same, of jobs of this version."""
        for quality in qualities:
            await self.serve(version)
            await self.audit(quality)

    async def audited_before(self, version: int, requests: int) -> None:
        """So many of this version's requests, none of which missed."""
        tally = Keys(self.hub.application).tally(SLOT, version)
        await self.redis.hset(tally, mapping={"requests": requests, "misses": 0})

    async def history(self) -> list[Change]:
        """What audits have changed, the newest first."""
        return [change for change in await self.policies.history(SLOT) if change.who == "audit"]

    async def events(self, but: str = "missed") -> list[tuple[str, int]]:
        """What came of audits, the newest first."""
        told = (await self.hub.upkeep("audits", "describe"))["events"]
        return [(each["event"], each["version"]) for each in told if each["event"] != but]


@pytest.fixture
def service(
    application: str, store_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> Service:
    monkeypatch.setattr(auditor, "KEPT_S", 0.0)
    hub = Coordinator(application, EVERY, store_server)
    return Service(hub, store_server)


async def test_a_claim_says_whether_an_audit_will_follow(service: Service) -> None:
    """So that the rank keeps the latents; of jobs that no version of the registry serves it doesn't."""
    kept = []
    for version in (1, None):
        job_id = (await service.hub.submit({"prompt": "a"}, {"name": "auto"}))["id"]
        origin = {"source": "registry", "slot": version and SLOT, "version": version}
        jobs = await service.hub._jobs()
        await jobs.change(job_id, lambda job, o=origin: replace(job, policy_origin=o))
        attempt = await service.hub.claim("replica_1", INFO, SOON)
        assert attempt is not None
        kept.append(attempt["keep_latents"])
        await service.hub.finish(job_id, 1, {"path": "/v.mp4"}, None)
    assert kept == [True, False]


async def test_an_idle_replica_audits_what_is_in_force(service: Service) -> None:
    """The newest job of the active version, with all that it takes to make it again; none of an older version, none
    that no version served, none twice."""
    old = await service.publish(4)
    await service.serve(old)
    number = await service.publish(6)
    first, second = await service.serve(number), await service.serve(number)
    await service.serve(None)
    assert await service.hub.claim("idle", INFO, 0.01) is None
    assert await service.hub.upkeep("audits", "next", "idle") == {
        "job_id": second,
        "request": {"prompt": "a"},
        "image": None,
        "served": f"/r/{second}/1-latents.pt",
    }
    await service.hub.upkeep("audits", "found", "idle", second, *GOOD)
    assert await service.next() == first
    await service.hub.upkeep("audits", "found", "idle", first, *BAD)
    assert await service.next() is None
    assert sample(service.hub, "warpcache_audit_runs_total", outcome="kept") == 1
    assert sample(service.hub, "warpcache_audit_runs_total", outcome="missed") == 1
    assert sample(service.hub, "warpcache_audit_ssim_count") == 2
    labels = {"slot": SLOT, "version": str(number)}
    assert sample(service.hub, "warpcache_audit_requests", **labels) == 2
    assert sample(service.hub, "warpcache_audit_misses", **labels) == 1


async def test_another_models_jobs_are_left_alone(service: Service) -> None:
    """What was served before a redeployment tells nothing of the model that is here now, until that is back."""
    await service.publish(4)
    job_id = await service.serve(1)
    other = {**INFO, "policy_key": {**INFO["policy_key"], "model": "Toy-0-2"}}
    await service.hub.claim("idle", other, 0.01)
    assert await service.hub.upkeep("audits", "next", "idle") is None
    assert await service.next() == job_id


async def test_a_canarys_jobs_come_first(service: Service) -> None:
    """For it is there to be measured: all of them are, whatever share of other jobs is."""
    service.hub.config = replace(EVERY, audits=AuditsConfig(share=1e-9))
    number = await service.publish(6)
    await service.serve(number)
    canary = await service.publish(4, share=20)
    found = [await service.serve(canary, "canary") for _ in range(3)]
    await service.serve(number)
    for job_id in reversed(found):
        assert await service.next() == job_id
        await service.hub.upkeep("audits", "found", "idle", job_id, *GOOD)
    assert await service.next() is None


async def test_replicas_share_the_audits(service: Service) -> None:
    """No job is with two of them; one that has left its audit off goes on with it, that of one that died is made by
    another, though not for ever."""
    number = await service.publish(6)
    first, second = await service.serve(number), await service.serve(number)
    assert [await service.next("a"), await service.next("b")] == [second, first]
    assert await service.next("c") is None
    await service.hub.upkeep("audits", "left", "b", first)
    assert await service.next("c") is None
    assert await service.next("b") == first
    for gone in ("b", "c"):
        service.hub.fleet._heard.pop(gone, None)
        assert await service.next("d" if gone == "c" else "c") == (first if gone == "b" else None)


async def test_no_audit_while_a_job_waits(service: Service) -> None:
    """And a replica that makes one is called as soon as a job comes, or when it is to end."""
    await service.serve(await service.publish(6))
    assert await service.next() is not None
    needed = asyncio.create_task(service.hub.upkeep("calls", "wait", "idle", INFO, SOON))
    assert not await service.hub.upkeep("calls", "wait", "other", INFO, 0.01)
    await service.hub.submit({"prompt": "a"}, {"name": "never"})
    assert await needed
    assert await service.hub.upkeep("audits", "next", "idle") is None
    await claim(service.hub)
    retired = asyncio.create_task(service.hub.upkeep("calls", "wait", "idle", INFO, SOON))
    await service.hub.retire("idle")
    assert await retired


async def test_an_audit_leaves_no_trace_in_its_job(service: Service) -> None:
    """No attempt, no other status, no epoch: the record is as it was."""
    job_id = await service.serve(await service.publish(6))
    before = await service.hub.get(job_id)
    await service.audit(BAD)
    assert await service.hub.get(job_id) == before


async def test_a_broken_promise_brings_the_version_before_back(service: Service) -> None:
    """By rollback, with the figures as its reason, an event, a metric; the next job's audit is of another version."""
    good, bad = await service.publish(10), await service.publish(2)
    await service.served_and_audited(bad, *[BAD] * ENOUGH)
    active = (await service.read()).active
    assert active is not None
    assert active.number == good
    change, *others = await service.history()
    assert (change.what, change.version, others) == ("rollback", good, [])
    assert change.why.startswith("promise broken: 4 of 4 audited requests missed")
    assert await service.events() == [("rollback", bad)]
    assert sample(service.hub, "warpcache_audit_steps_total", step="rollback") == 1


async def test_without_a_good_version_before_it_steps_down_to_none(service: Service) -> None:
    """A first version has none before it: safer and safer ones are published, each tested anew, until nothing is
    cached."""
    number, calls = await service.publish(2), []
    while True:
        await service.served_and_audited(number, *[BAD] * ENOUGH)
        active = (await service.read()).active
        assert active is not None
        number, document = active.number, parse_document(active.document)
        calls.append(document.expected["calls"])
        if document.policy["name"] == "never":
            break
    assert calls == [11, 16, 18, 19, 20]
    assert {change.what for change in await service.history()} == {"publish"}
    assert sample(service.hub, "warpcache_audit_steps_total", step="step_down") == len(calls)
    jobs = await service.hub._jobs()
    last = await service.serve(number)
    await jobs.change(last, lambda job: replace(job, policy={"name": "never"}))
    assert await service.next() is None


async def test_a_version_that_was_broken_is_not_gone_back_to(service: Service) -> None:
    """The one before is known to be as bad: a safer one comes."""
    first = await service.publish(2)
    await service.served_and_audited(first, *[BAD] * ENOUGH)
    second = (await service.read()).active
    assert second is not None
    await service.served_and_audited(second.number, *[BAD] * ENOUGH)
    third = (await service.read()).active
    assert third is not None
    assert third.number > second.number > first
    assert await service.events() == [("step_down", second.number), ("step_down", first)]


async def test_a_canary_is_withdrawn_or_comes_into_force(service: Service) -> None:
    """One that misses goes; one that is proven comes into force by itself."""
    good = await service.publish(10)
    for canary, quality, times, step in ((2, BAD, ENOUGH, "withdraw"), (8, GOOD, 2, "promote")):
        number = await service.publish(canary, share=20)
        if step == "promote":
            await service.audited_before(number, PROVEN - 2)
        for _ in range(times):
            assert (await service.read()).canary is not None
            await service.serve(number, "canary")
            await service.audit(quality)
        found = await service.read()
        assert found.canary is None
        assert found.active is not None
        assert found.active.number == (good if step == "withdraw" else number)
        assert (await service.events())[0] == (step, number)
    assert [change.what for change in await service.history()] == ["activate", "withdraw"]


async def test_counts_outlive_the_coordinator(
    service: Service, application: str, store_server: EmbeddedServer
) -> None:
    """Another one in its place counts on, audits no job again, and does at once what the one before had counted and not
    done."""
    good, bad = await service.publish(10), await service.publish(2)
    await service.served_and_audited(bad, *[BAD] * (ENOUGH - 1))
    again = Service(Coordinator(application, EVERY, store_server), store_server)
    assert await again.next() is None
    job_id = await again.serve(bad)
    await AuditStore(again.redis, application).count(job_id, SLOT, bad, False, {})
    third = Service(Coordinator(application, EVERY, store_server), store_server)
    assert await third.next() is None
    active = (await third.read()).active
    assert active is not None
    assert active.number == good


async def test_of_two_coordinators_one_steps_down(
    service: Service, application: str, store_server: EmbeddedServer
) -> None:
    """Who finds the policies changed leaves them: one rollback, though both have seen the promise broken."""
    await service.publish(12)
    good, bad = await service.publish(10), await service.publish(2)
    await service.served_and_audited(bad, *[BAD] * (ENOUGH - 1))
    job_id = await service.serve(bad)
    another = Coordinator(application, EVERY, store_server)
    await another.upkeep("audits", "describe")
    await asyncio.gather(
        *(hub.upkeep("audits", "found", "idle", job_id, *BAD) for hub in (service.hub, another))
    )
    active = (await service.read()).active
    assert active is not None
    assert active.number == good
    assert len(await service.history()) == 1


async def test_an_audit_that_fails_is_not_made_again(service: Service) -> None:
    """It counts as such, and as nothing else."""
    await service.serve(await service.publish(6))
    job_id = await service.next()
    error = {"code": "artifact_gone", "message": "the file is no longer in the storage"}
    await service.hub.upkeep("audits", "failed", "idle", job_id, error)
    assert await service.next() is None
    assert sample(service.hub, "warpcache_audit_runs_total", outcome="failed") == 1
    assert (await service.hub.upkeep("audits", "describe"))["policies"] == []


async def test_versions_that_promise_no_quality_are_not_audited(service: Service) -> None:
    """A number of calls is kept by construction."""
    document: dict[str, Any] = DOCUMENT.to_dict() | {"target": {"metric": "calls", "bound": 6.0}}
    number = await service.policies.publish(await service.read(), document, "me", "test")
    await service.serve(number)
    assert await service.next() is None


async def test_operators_see_how_policies_stand(
    service: Service, api_of: Callable[[Coordinator], FastAPI]
) -> None:
    """Counts, interval and evidence of the versions in force, and what came of audits, the newest first."""
    number = await service.publish(6)
    await service.serve(number)
    await service.audit(BAD)
    transport = httpx.ASGITransport(api_of(service.hub))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        answer = await client.get("/admin/audits")
    assert answer.status_code == 200
    [standing], [event] = answer.json()["policies"], answer.json()["events"]
    assert standing.items() >= {"slot": SLOT, "role": "active", "version": number}.items()
    assert (standing["requests"], standing["misses"], standing["verdict"]) == (1, 1, "open")
    assert (event["event"], event["psnr"], event["ssim"]) == ("missed", *BAD)
    assert event["target"] == "SSIM of 0.99"


async def test_a_store_that_goes_away_costs_no_step(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An audit was counted, and then the store was away: said again, it counts nothing, and what follows of it is
    done."""
    good, bad = await service.publish(10), await service.publish(2)
    await service.served_and_audited(bad, *[BAD] * (ENOUGH - 1))
    job_id = await service.serve(bad)
    with monkeypatch.context() as away:

        async def lost(*_: Any) -> None:
            raise Unavailable("the job store can't be reached")

        away.setattr(PolicyStore, "rollback", lost)
        with pytest.raises(Unavailable):
            await service.hub.upkeep("audits", "found", "idle", job_id, *BAD)
    await service.hub.upkeep("audits", "found", "idle", job_id, *BAD)
    active = (await service.read()).active
    assert active is not None
    assert active.number == good
    tally = await AuditStore(service.redis, service.hub.application).tally(SLOT, bad)
    assert (tally.requests, tally.misses) == (ENOUGH, ENOUGH)


async def test_a_service_without_published_policies_loads_nothing(service: Service) -> None:
    """Its coordinator stays as light as it was."""
    await service.serve(None)
    assert await service.next() is None
    assert service.hub._upkeep._parts == {}
