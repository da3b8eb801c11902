"""The jobs of an application: records in the store, and the same in memory for those who ask and wait."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from warpcache_ray.errors import IdempotencyConflict, JobNotReady, NotFound, QueueFull, Unavailable
from warpcache_ray.serving.admission import admits
from warpcache_ray.serving.attempts import Attempt
from warpcache_ray.serving.history import STEP, happened
from warpcache_ray.serving.lifecycle import Delivery, Job, Once, Status
from warpcache_ray.store.events import Event
from warpcache_ray.store.jobs import JobStore, Record
from warpcache_ray.store.keys import Place

log = logging.getLogger(__name__)

PERSIST_S = 2.0
"""How old stored progress may be. All else is stored before it counts."""
STEP_S = 0.25
"""How soon a job's next step may be told. All else is told as it is stored."""

FOLLOW_S = 5.0
"""How long a report may wait for the store."""
PROBE_S = 1.0
"""How long a new job may wait for a store that couldn't serve when it was last asked."""

Transition = Callable[[Job], Job]


class Jobs:
    """The only writer of an application's records. A change is stored first, then seen, of which `saw` hears; changes
    follow each other."""

    def __init__(self, store: JobStore, saw: Callable[[Job], None]) -> None:
        self.store = store
        self._saw = saw
        self.revision = 0
        """Rises with every change but progress."""
        self._jobs: dict[str, Job] = {}
        self._by_status: dict[Status, dict[str, Job]] = {status: {} for status in Status}
        """Each in the order in which they came to it."""
        self._keys: dict[tuple[str, str], str] = {}
        """Which job each client's idempotency key stands for."""
        self._versions: dict[str, int] = {}
        self._stored_at: dict[str, float] = {}
        self._told: dict[str, Job] = {}
        """As the events have it."""
        self._told_at: dict[str, float] = {}
        self._heard_at: dict[str, float] = {}
        self._doubtful: dict[str, Job] = {}
        self._changing = asyncio.Lock()
        self._changed = asyncio.Condition()

    async def load(self) -> None:
        """Takes over what the store holds. Running attempts get a new lease: their replicas may be well."""
        now = time.time()
        found: list[tuple[Job, int]] = []
        for record in await self.store.load():
            try:
                found.append((_job(record), record.version))
            except (TypeError, KeyError, ValueError) as error:
                # Another version's. It stays where it is, for that version or for whoever looks.
                log.warning("record %s can't be read: %s", record.id, error)
        for job, version in sorted(found, key=lambda each: each[0].finished_at or 0.0):
            self._keep(replace(job, seen_at=now) if job.status is Status.RUNNING else job)
            self._versions[job.id] = version
            self._told[job.id] = job

    def __iter__(self) -> Iterator[Job]:
        return iter(list(self._jobs.values()))

    def get(self, job_id: str, owner: str | None = None) -> Job:
        """A job as it stands.

        Raises:
            NotFound: there is none by this id (any more), or none of this owner's.
        """
        job = self.find(job_id, owner)
        if job is None or job.removed:
            raise NotFound(f"job {job_id!r} is unknown (or expired)", "job_id")
        return job

    def find(self, job_id: str, owner: str | None = None) -> Job | None:
        """A job as it stands, also one that is hidden; None if there is none by this id (any more), or none of this
        owner's."""
        job = self._jobs.get(job_id)
        return job if job is None or owner in (None, job.client) else None

    def count(self, status: Status) -> int:
        """How many have a status."""
        return len(self._by_status[status])

    def having(self, *statuses: Status) -> list[Job]:
        """Those with one of the statuses, of each the first to come to it first."""
        return [job for status in statuses for job in self._by_status[status].values()]

    @property
    def active(self) -> list[Job]:
        """Those that haven't ended."""
        return self.having(Status.QUEUED, Status.RUNNING)

    def silent_s(self, job_id: str) -> float:
        """For how long nothing was heard of a job's attempt, whatever the machine's clock was set to meanwhile. Of one
        that ended while the store was away nothing could be heard."""
        return time.monotonic() - max(self._heard_at[job_id], self.store.answers.back_at)

    def known(self, once: Once) -> Job | None:
        """The job that an idempotency key stands for.

        Raises:
            IdempotencyConflict: it stands for another request.
        """
        found = self._jobs.get(self._keys.get((once.client, once.key), ""))
        if found is None or found.removed:
            return None
        if found.asked != once.asked:
            raise IdempotencyConflict(
                f"Idempotency-Key = {once.key!r} was used for another request; "
                "send that one's body with it, or another key",
                "Idempotency-Key",
            )
        return found

    async def add(self, job: Job, most: int, once: Once | None = None) -> Job:
        """A new job, unless `most` wait already and its client has its share of those (see `admission.admits`), or the
        one that its request's idempotency key stands for. The key is part of the record, so that neither is ever there
        without the other.

        Raises:
            IdempotencyConflict: the key stands for another request.
            QueueFull: as many jobs wait as may, for this client.
            Unavailable: the store doesn't take it; there is no such job then.
        """
        if self.store.answers.away and (once is None or self.known(once) is None):
            # Before the line of those who wait for it.
            await self._probe()
        async with self._changing:
            if once is not None:
                known = self.known(once)
                if known is not None:
                    return known
                job = replace(job, key=once.key, asked=once.asked)
            # One by one only where there may be no room: it takes all that wait.
            if (waiting := self.count(Status.QUEUED)) >= most:
                of = Counter(other.client for other in self.having(Status.QUEUED))
                if not admits(of, job.client, most):
                    said = f"{waiting} jobs wait already, {of[job.client]} of them yours"
                    raise QueueFull(f"{said}; try again later", "queue")
            events = happened(None, job)
            try:
                created = await self.store.create(_record(job, 1), events)
            except Unavailable:
                # Its answer may have been lost, not the job, which nobody knows of.
                self._doubtful[job.id] = job
                raise
            assert created
            self._versions[job.id] = 1
            self._note_told(job, events)
            await self._see(job)
            return job

    async def change(self, job_id: str, transition: Transition) -> Job:
        """The job after a transition; if that leaves it as it was, nothing is stored.

        Raises:
            NotFound: there is no such job.
            StaleFence: the transition does.
            Unavailable: the store doesn't take it; the job is as before.
        """
        async with self._changing:
            before = self.get(job_id)
            job = transition(before)
            if job != before:
                await self._store(job)
                await self._see(job)
            return job

    async def note(self, job_id: str, transition: Transition) -> Job:
        """The job after a transition that may be lost with this process: seen at once, stored and told soon."""
        before = self.get(job_id)
        job = transition(before)
        await self._see(job)
        if self._changing.locked():
            # Reports come often; none has to stand in line for a store that is slow.
            return job
        try:
            async with self._changing, asyncio.timeout(FOLLOW_S):
                await self._follow(self.get(job_id))
        except (Unavailable, TimeoutError) as error:
            log.warning("progress of %s isn't stored: %s", job_id, error)
        return job

    async def settle(self) -> list[Job]:
        """Takes away what the store may hold of jobs that weren't taken in; these."""
        settled = list(self._doubtful.values())
        for job in settled:
            await self.store.remove(job.id)
            del self._doubtful[job.id]
        return settled

    async def remove(self, job_id: str) -> None:
        """Forgets a job."""
        async with self._changing:
            await self.store.remove(job_id)
            self._forget(self._jobs[job_id])

    async def events(self, job_id: str, after: str, timeout_s: float) -> list[Event] | None:
        """What happened to a job after an event, as soon as there is something or the time is over; None if the job
        has ended and nothing came after that.

        Raises:
            NotFound: there is no such job (any more).
        """
        job, told = self.get(job_id), self._told[job_id]
        found = await self.store.events.read(job_id, after)
        if found or job.ended:
            return found or None
        if await self.until(lambda: self._told.get(job_id) is not told, timeout_s):
            return await self.store.events.read(job_id, after)
        return []

    async def decisions(self, job_id: str) -> dict[str, Any]:
        """What the attempt that published the job's video decided at each step from the one on at which it began: by
        transformer and branch, in columns.

        Raises:
            NotFound: there is no such job (any more).
            JobNotReady: it has no video.
        """
        job = self.get(job_id)
        found = await self.store.decisions(job_id, job.fence)
        if job.status is not Status.SUCCEEDED or found is None:
            raise JobNotReady(f"job {job_id} is {job.status}; it has no decisions", "job_id")
        return {"attempt": job.fence, "resumed_at": job.attempts[-1].resumed_at, "branches": found}

    async def until(self, happened: Callable[[], bool], timeout_s: float) -> bool:
        """Waits for what a change brings about; False when the time is over without it."""
        async with self._changed:
            try:
                await asyncio.wait_for(self._changed.wait_for(happened), timeout_s)
            except TimeoutError:
                return False
            return True

    async def wake(self) -> None:
        """Has all who wait look again."""
        async with self._changed:
            self._changed.notify_all()

    async def _probe(self) -> None:
        try:
            async with asyncio.timeout(PROBE_S):
                await self.store.hold()
        except TimeoutError:
            raise Unavailable("the job store doesn't answer; try again later") from None

    async def _follow(self, job: Job) -> None:
        """Stores or tells what is due of a job's progress."""
        events, now = happened(self._told[job.id], job), time.monotonic()
        stale = now - self._stored_at.get(job.id, 0.0) > PERSIST_S
        if stale or any(event.kind != STEP for event in events):
            await self._store(job)
        elif events and now - self._told_at.get(job.id, 0.0) > STEP_S:
            await self.store.events.tell(job.id, events[0])
            self._note_told(job, events)
        else:
            return
        await self.wake()

    async def _store(self, job: Job) -> None:
        version, events = self._versions[job.id] + 1, happened(self._told[job.id], job)
        if not await self.store.swap(_record(job, version), events):
            # A write of ours whose answer was lost on its way may have counted all the same, and told what it had to.
            stored = await self.store.get(job.id)
            if stored is not None:
                version, events = stored.version + 1, happened(_job(stored), job)
            if not await self.store.swap(_record(job, version), events):
                raise Unavailable(f"job {job.id} isn't in the store any more")
        self._versions[job.id] = version
        self._stored_at[job.id] = time.monotonic()
        self._note_told(job, events)

    def _note_told(self, job: Job, events: list[Event]) -> None:
        if events:
            self._told[job.id] = job
            self._told_at[job.id] = time.monotonic()

    async def _see(self, job: Job) -> None:
        self._keep(job)
        self._saw(job)
        await self.wake()

    def _keep(self, job: Job) -> None:
        before = self._jobs.get(job.id)
        if before is None or before.seen_at != job.seen_at:
            self._heard_at[job.id] = time.monotonic()
        if before is None or before.status is not job.status:
            self.revision += 1
        if before is not None and before.status is not job.status:
            del self._by_status[before.status][job.id]
        self._jobs[job.id] = self._by_status[job.status][job.id] = job
        if job.key is not None and not job.removed:
            self._keys[job.client, job.key] = job.id

    def _forget(self, job: Job) -> None:
        self.revision += 1
        del self._jobs[job.id], self._by_status[job.status][job.id]
        if job.key is not None and self._keys.get((job.client, job.key)) == job.id:
            del self._keys[job.client, job.key]
        for table in (self._versions, self._stored_at, self._told, self._told_at, self._heard_at):
            table.pop(job.id, None)


def _record(job: Job, version: int) -> Record:
    if job.ended:
        return Record(job.id, version, Place.ENDED, job.finished_at or 0.0, job.stored())
    place = Place.QUEUED if job.status is Status.QUEUED else Place.RUNNING
    return Record(job.id, version, place, job.created_at, job.stored())


def _job(record: Record) -> Job:
    body: dict[str, Any] = record.body
    told = body.get("webhook")
    rebuilt = {
        "status": Status(body["status"]),
        "attempts": tuple(map(Attempt.read, body["attempts"])),
        "webhook": told and Delivery(**told),
    }
    return Job(**{**body, **rebuilt})
