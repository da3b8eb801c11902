"""The coordinator's part of audits: hands them to idle replicas, counts them, and does what follows of that."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from warpcache_ray.config import ServiceConfig
from warpcache_ray.errors import LostRace, NotFound
from warpcache_ray.policy_document import PolicyDocument, parse_document
from warpcache_ray.serving import sampling
from warpcache_ray.serving.audits import Standing, Step, due, keeps, promise_of, safer
from warpcache_ray.serving.fleet import Fleet
from warpcache_ray.serving.jobs import Jobs
from warpcache_ray.serving.lifecycle import Job, Status
from warpcache_ray.serving.metrics import Metrics
from warpcache_ray.store.audits import AuditStore
from warpcache_ray.store.events import Event
from warpcache_ray.store.policies import Policies, PolicyStore, Version

log = logging.getLogger(__name__)

WHO = "audit"
TRIES = 2
"""How often an audit is begun whose end isn't told: it may be what its replica dies of."""
ROUNDS = 5
"""Steps at a time, lost races among them; what is left is taken after the next audit."""
SHOWN = 50
KEPT_S = 3.0
"""How long after its end a job's latents may still be on their way to the storage."""


class Auditor:
    """Which audit a replica makes next, and what its outcome means. What must outlive it is in the store; an audit that
    was under way with a replica that died is begun anew by another one."""

    def __init__(
        self,
        jobs: Jobs,
        fleet: Fleet,
        metrics: Metrics,
        store: AuditStore,
        policies: PolicyStore,
        config: Callable[[], ServiceConfig],
    ) -> None:
        self._jobs = jobs
        self._fleet = fleet
        self._metrics = metrics
        self._store = store
        self._policies = policies
        self._config = config
        self._at: dict[str, str] = {}
        """Which job each replica audits, or has left off."""
        self._begun: Counter[str] = Counter()
        self._over: set[str] = set()
        """Jobs that need no audit (any more)."""
        self._looked = False
        self._choosing = asyncio.Lock()
        """So that no two replicas are given the same."""

    async def next(self, replica: str) -> dict[str, Any] | None:
        """The next audit for an idle replica, the one that it has left off if there is one; None if there is nothing to
        audit, or the replica is needed."""
        async with self._choosing:
            return await self._next(replica)

    async def _next(self, replica: str) -> dict[str, Any] | None:
        if not self._looked:
            # One that died may have counted an audit, and not done what follows of that.
            await self._settle_all()
            self._looked = True
        job = await self._chosen(replica)
        if job is None or self._jobs.count(Status.QUEUED) or self._fleet.retired(replica):
            return None
        self._at[replica] = job.id
        self._begun[job.id] += 1
        return {
            "job_id": job.id,
            "request": job.request,
            "image": job.image,
            "served": sampling.latents_beside(job),
        }

    async def left(self, replica: str, job_id: str) -> None:
        """A replica has left an audit off, for a job or for its own end. It counts as no try."""
        self._begun[job_id] -= 1
        self._metrics.audited("left")
        if self._fleet.retired(replica):
            self._at.pop(replica, None)

    async def failed(self, replica: str, job_id: str, error: dict[str, Any]) -> None:
        """An audit came to nothing, and would again."""
        log.warning("the audit of %s failed: %s", job_id, error["message"])
        self._end(replica, job_id)
        self._metrics.audited("failed")

    async def found(self, replica: str, job_id: str, psnr: float, ssim: float) -> None:
        """An audit's outcome: how near the video that was served is to the uncached one."""
        job = self._jobs.find(job_id)
        if job is not None:
            slot, number = sampling.served_by(job)
            if await self._store.audited(job_id) is None:
                await self._count(job, slot, number, psnr, ssim)
            # Also where this is said again, as the store was away when it was said first.
            await self._settle(slot)
        self._end(replica, job_id)

    async def describe(self) -> dict[str, Any]:
        """How the versions stand that are in force where there were audits, and what came of these lately."""
        standings = []
        for slot in await self._slots():
            active, canary = await self._standings(await self._policies.read(slot))
            roles = (("active", active), ("canary", canary))
            standings += [{"slot": slot, "role": r, **s.figures()} for r, s in roles if s]
        events = await self._store.events(SHOWN)
        told = [{"id": event.id, "event": event.kind, **event.data} for event in events]
        return {"policies": standings, "events": told}

    def _end(self, replica: str, job_id: str) -> None:
        self._at.pop(replica, None)
        self._over.add(job_id)

    async def _count(self, job: Job, slot: str, number: int, psnr: float, ssim: float) -> None:
        document = parse_document((await self._policies.version(slot, number)).document)
        quality = {"psnr": round(psnr, 3), "ssim": round(ssim, 6)}
        kept = keeps(document, {"psnr": psnr, "ssim": ssim})
        if await self._store.count(job.id, slot, number, kept, quality) is None:
            return
        self._metrics.audited("kept" if kept else "missed", psnr, ssim)
        if not kept:
            told = {"job_id": job.id, "target": str(document.target), **quality}
            await self._tell("missed", slot, number, **told)

    async def _chosen(self, replica: str) -> Job | None:
        live = self._fleet.live(self._config().lease_s)
        self._at = {other: job for other, job in self._at.items() if other in live}
        left_off = self._at.pop(replica, None)
        taken, model = set(self._at.values()), _model_of(live.get(replica, {}))
        promising: dict[str, dict[int, str]] = {}
        for job in self._candidates(left_off):
            slot, number = sampling.served_by(job)
            if slot not in promising:
                promising[slot] = _promising(await self._policies.read(slot))
            made_by = promising[slot].get(number)
            # What another model has made, which may be served again, tells nothing here.
            if job.id in taken or made_by not in (None, model):
                continue
            if made_by is not None and await self._store.audited(job.id) is None:
                return job
            self._over.add(job.id)
        return None

    def _candidates(self, left_off: str | None) -> list[Job]:
        """What was left off, then canaries' jobs, the newest first, for what is in force now is to be known soon."""
        share, until = self._config().audits.share, time.time() - KEPT_S
        ended = self._jobs.having(Status.SUCCEEDED)
        known = {job.id for job in ended}
        self._over &= known
        self._begun = Counter({id: times for id, times in self._begun.items() if id in known})
        found = []
        for job in reversed(ended):
            if job.id in self._over or self._begun[job.id] >= TRIES:
                continue
            if job.removed or not sampling.wanted(job, share):
                self._over.add(job.id)
            elif (job.finished_at or 0) <= until:
                found.append(job)
        return sorted(found, key=lambda j: (j.id != left_off, not sampling.of_canary(j)))

    async def _slots(self) -> list[str]:
        return sorted({slot for slot, _ in await self._store.versions()})

    async def _settle_all(self) -> None:
        for slot in await self._slots():
            await self._settle(slot)

    async def _settle(self, slot: str) -> None:
        """Takes the steps that are due."""
        for _ in range(ROUNDS):
            seen = await self._policies.read(slot)
            active, canary = await self._standings(seen)
            self._metrics.audits_stand(slot, [s.figures() for s in (active, canary) if s])
            previous = await self._policies.previous(slot)
            good = previous is not None and not (await self._store.tally(slot, previous)).broken
            step = due(active, canary, good)
            if step is None:
                return
            about = canary if step in (Step.WITHDRAW, Step.PROMOTE) else active
            assert about is not None
            try:
                await self._take(seen, step, about)
            except (LostRace, NotFound) as error:
                # Somebody else has changed something; that is looked at next.
                log.info("audits look again: %s", error.message)

    async def _take(self, seen: Policies, step: Step, about: Standing) -> None:
        why, policies = about.reason, self._policies
        if step is not Step.PROMOTE:
            await self._store.condemn(seen.key, about.version)
        match step:
            case Step.WITHDRAW:
                await policies.withdraw(seen, WHO, why)
            case Step.PROMOTE:
                await policies.promote(seen, WHO, why)
            case Step.ROLLBACK:
                await policies.rollback(seen, WHO, why)
            case Step.STEP_DOWN:
                assert seen.active is not None
                document = safer(parse_document(seen.active.document), seen.active.number)
                await policies.publish(seen, document.to_dict(), WHO, why)
        log.warning("%s: %s of version %d: %s", seen.key, step, about.version, why)
        self._metrics.stepped(step)
        await self._tell(step, seen.key, about.version, why=why)

    async def _standings(self, seen: Policies) -> tuple[Standing | None, Standing | None]:
        return (
            await self._standing(seen.key, seen.active),
            await self._standing(seen.key, seen.canary),
        )

    async def _standing(self, slot: str, version: Version | None) -> Standing | None:
        if version is None or (promise := promise_of(parse_document(version.document))) is None:
            return None
        tally = await self._store.tally(slot, version.number)
        return Standing(version.number, promise, tally.requests, tally.misses, tally.broken)

    async def _tell(self, kind: str, slot: str, number: int, **data: Any) -> None:
        at = round(time.time(), 3)
        await self._store.tell(Event(kind, {"slot": slot, "version": number, **data, "at": at}))


def _promising(policies: Policies) -> dict[int, str]:
    """The versions in force that name a quality to keep, and the model that each is for."""
    in_force = [version for version in (policies.active, policies.canary) if version is not None]
    documents = {version.number: parse_document(version.document) for version in in_force}
    return {number: each.key.model for number, each in documents.items() if _promises(each)}


def _promises(document: PolicyDocument) -> bool:
    return promise_of(document) is not None


def _model_of(info: Mapping[str, Any]) -> str | None:
    """As policies name the model that a replica has told of."""
    return info["policy_key"]["model"] if info else None
