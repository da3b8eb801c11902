"""The jobs of an application: records in the store, and the same in memory for those who ask and wait."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from typing import Any

from warpcache_ray.errors import NotFound, Unavailable
from warpcache_ray.serving.lifecycle import Job, Status
from warpcache_ray.store.jobs import JobStore, Place, Record

log = logging.getLogger(__name__)

PERSIST_S = 2.0
"""How old stored progress may be. All else is stored before it counts."""

Transition = Callable[[Job], Job]


class Jobs:
    """The only writer of an application's records. A change is stored first, then seen; changes follow each other."""

    def __init__(self, store: JobStore) -> None:
        self.store = store
        self._jobs: dict[str, Job] = {}
        self._versions: dict[str, int] = {}
        self._stored_at: dict[str, float] = {}
        self._changing = asyncio.Lock()
        self._changed = asyncio.Condition()

    async def load(self) -> None:
        """Takes over what the store holds. Running attempts get a new lease: their replicas may be well."""
        now = time.time()
        for record in await self.store.load():
            try:
                job = _job(record)
            except (TypeError, KeyError, ValueError) as error:
                # Another version's. It stays where it is, for that version or for whoever looks.
                log.warning("record %s can't be read: %s", record.id, error)
                continue
            running = job.status is Status.RUNNING
            self._jobs[job.id] = replace(job, seen_at=now) if running else job
            self._versions[job.id] = record.version

    def __iter__(self) -> Iterator[Job]:
        return iter(list(self._jobs.values()))

    def get(self, job_id: str) -> Job:
        """A job as it stands.

        Raises:
            NotFound: there is none by this id (any more).
        """
        job = self._jobs.get(job_id)
        if job is None or job.removed:
            raise NotFound(f"job {job_id!r} is unknown (or expired)", "job_id")
        return job

    def count(self, status: Status) -> int:
        """How many have a status."""
        return sum(job.status is status for job in self._jobs.values())

    async def add(self, job: Job) -> None:
        """A new job.

        Raises:
            Unavailable: the store doesn't take it; there is no such job then.
        """
        async with self._changing:
            if not await self.store.create(_record(job, 1)):
                raise Unavailable(f"job {job.id} exists already")
            self._versions[job.id] = 1
            await self._see(job)

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
        """The job after a transition that may be lost with this process: seen at once, stored soon."""
        before = self.get(job_id)
        job = transition(before)
        await self._see(job)
        due = time.monotonic() - self._stored_at.get(job_id, 0.0) > PERSIST_S
        if due:
            try:
                async with self._changing:
                    await self._store(self.get(job_id))
            except Unavailable as error:
                log.warning("progress of %s isn't stored: %s", job_id, error.message)
        return job

    async def remove(self, job_id: str) -> None:
        """Forgets a job."""
        async with self._changing:
            await self.store.remove(job_id)
            for table in (self._jobs, self._versions, self._stored_at):
                table.pop(job_id, None)

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

    async def _store(self, job: Job) -> None:
        version = self._versions[job.id] + 1
        if not await self.store.swap(_record(job, version)):
            # A write of ours whose answer was lost on its way may have counted all the same.
            stored = await self.store.get(job.id)
            version = stored.version + 1 if stored is not None else version
            if not await self.store.swap(_record(job, version)):
                raise Unavailable(f"job {job.id} isn't in the store any more")
        self._versions[job.id] = version
        self._stored_at[job.id] = time.monotonic()

    async def _see(self, job: Job) -> None:
        self._jobs[job.id] = job
        await self.wake()


def _record(job: Job, version: int) -> Record:
    if job.ended:
        return Record(job.id, version, Place.ENDED, job.finished_at or 0.0, asdict(job))
    place = Place.QUEUED if job.status is Status.QUEUED else Place.RUNNING
    return Record(job.id, version, place, job.created_at, asdict(job))


def _job(record: Record) -> Job:
    body: dict[str, Any] = record.body
    return Job(**{**body, "status": Status(body["status"])})
