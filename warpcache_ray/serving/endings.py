"""How jobs and attempts end: published, lost, handed back, out of time; and what goes with them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

from warpcache_ray.config import ServiceConfig
from warpcache_ray.errors import NotFound, Unavailable
from warpcache_ray.serving import admission, lifecycle, logs, retention, traces
from warpcache_ray.serving.admission import Rates
from warpcache_ray.serving.jobs import Jobs
from warpcache_ray.serving.leavings import (
    Leavings,
    forget_all,
    forget_artifacts,
    forget_checkpoints,
)
from warpcache_ray.serving.lifecycle import TERMINAL, Job, StaleFence, Status

log = logging.getLogger(__name__)

AGAIN_S = 60.0
"""When to try again to take away what storage didn't let go."""


class Endings:
    """Transitions that may end a job or an attempt, with all that has to follow. `config` tells the one in force."""

    def __init__(self, jobs: Jobs, rates: Rates, config: Callable[[], ServiceConfig]) -> None:
        self.jobs = jobs
        self.rates = rates
        self._config = config
        self.leavings = Leavings()
        self._going: dict[str, asyncio.Task[None]] = {}
        """Of jobs that are being taken away."""

    async def end(self, job_id: str, transition: Callable[[Job], Job]) -> bool:
        """Makes a transition that may end the job; False if a stale attempt asked for it."""
        before = self.jobs.get(job_id)
        try:
            job = await self.jobs.change(job_id, transition)
        except StaleFence:
            return False
        if job.ended and not before.ended:
            self.rates.saw(job)
            self.leavings.begin(forget_checkpoints, self._config(), job)
            traces.tell(self._config(), job)
            with logs.about(job=job.id, attempt=job.fence):
                log.info("the job has ended: %s", job.error["code"] if job.error else job.status)
        return True

    async def lose(
        self, job_id: str, fence: int, silent_s: float = 0.0, error: dict[str, Any] | None = None
    ) -> bool:
        """Gives a lost attempt's job back, in an epoch of its own; one that spoke in the last seconds isn't lost."""
        epoch = await self.jobs.store.raise_epoch()
        most = self._config().max_attempts

        def lost(job: Job) -> Job:
            silent = self.jobs.silent_s(job_id) >= silent_s
            return lifecycle.lose(job, fence, most, epoch, time.time(), error) if silent else job

        return await self.end(job_id, lost)

    async def hand_back(self, job_id: str, fence: int) -> bool:
        """Gives the job of an attempt back whose replica is shut down, in an epoch of its own."""
        epoch = await self.jobs.store.raise_epoch()

        def returned(job: Job) -> Job:
            return lifecycle.hand_back(job, fence, epoch, time.time())

        return await self.end(job_id, returned)

    async def reap(self) -> None:
        """One round: ends what is out of time, gives back what has lost its worker, forgets what is too old."""
        for job in self.jobs.active:
            await self._guarded(job.id, self._reap)
        config, ended = self._config(), self.jobs.having(*TERMINAL)
        since = time.time() - config.result_ttl_s
        for job in retention.forgettable(ended, since, config.keep_jobs):
            await self._guarded(job.id, self._forget)

    async def _guarded(self, job_id: str, action: Callable[[Job], Awaitable[None]]) -> None:
        # Read anew: it may have changed since the round began.
        job = self.jobs.find(job_id)
        try:
            if job is not None:
                await action(job)
        except (NotFound, StaleFence):
            log.debug("job %s has gone on meanwhile", job_id)
        except Unavailable:
            raise
        except Exception:
            # Whatever went wrong with this one, the leases of the others have to be watched.
            log.exception("reaping job %s failed", job_id)

    async def _reap(self, job: Job) -> None:
        config, now = self._config(), time.time()

        def expire(job: Job) -> Job:
            return admission.expire(job, config.queue_timeout_s, config.attempt_timeout_s, now)

        if expire(job) is not job:
            await self.end(job.id, expire)
        elif job.status is Status.RUNNING and self.jobs.silent_s(job.id) > config.lease_s:
            await self.lose(job.id, job.fence, config.lease_s)

    async def settle(self) -> None:
        """Takes away what is left of jobs that weren't taken in."""
        for job in await self.jobs.settle():
            self.leavings.begin(forget_artifacts, self._config(), job)

    async def _forget(self, job: Job) -> None:
        """Hides the job, and begins to take it away."""
        if job.id in self._going:
            return
        if not job.removed:
            job = await self.jobs.change(job.id, lambda job: replace(job, removed=True))
        self._going[job.id] = asyncio.create_task(self._take_away(job))

    async def _take_away(self, job: Job) -> None:
        """First the files, then the record, which tells where they are; if that fails, it is tried again some time."""
        try:
            if await self.leavings.begin(forget_all, self._config(), job):
                await self.jobs.remove(job.id)
            else:
                await asyncio.sleep(AGAIN_S)
        except Unavailable as error:
            log.warning("the record of %s stays: %s", job.id, error.message)
        finally:
            del self._going[job.id]
