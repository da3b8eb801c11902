"""The Ray actor that holds the jobs: it takes them in, hands them to replicas, relays cancellations, counts."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from warpcache_ray.config import ServiceConfig
from warpcache_ray.errors import NotFound, QueueFull
from warpcache_ray.serving import lifecycle
from warpcache_ray.serving.lifecycle import Job, StaleFence, Status
from warpcache_ray.serving.metrics import Metrics

log = logging.getLogger(__name__)

NAMESPACE = "warpcache"
REAP_S = 1.0


@dataclass(slots=True)
class _Replica:
    info: dict[str, Any]
    seen_at: float = field(default_factory=time.time)


class Coordinator:
    """Async methods, each a transition of `lifecycle`; waiting ones wake on any change."""

    def __init__(self, config: ServiceConfig) -> None:
        self.config = config
        self.jobs: OrderedDict[str, Job] = OrderedDict()
        self.replicas: dict[str, _Replica] = {}
        self.metrics = Metrics()
        self._changed = asyncio.Condition()
        self._reaper: asyncio.Task[None] | None = None

    async def configure(self, config: ServiceConfig) -> None:
        """Takes a redeployed application's configuration."""
        self.config = config

    async def submit(self, request: dict[str, Any], policy: dict[str, Any]) -> dict[str, Any]:
        """Takes a job in.

        Raises:
            QueueFull: as many jobs wait as the limit allows.
        """
        waiting = sum(job.status is Status.QUEUED for job in self.jobs.values())
        if waiting >= self.config.model.limits.queue:
            raise QueueFull(f"{waiting} jobs wait already; try again later", "queue")
        job = Job(f"job_{uuid.uuid4().hex}", request, policy, time.time())
        await self._put(job)
        return job.to_dict()

    async def get(self, job_id: str) -> dict[str, Any]:
        """A job's record."""
        return self._job(job_id).to_dict()

    async def video_path(self, job_id: str) -> str | None:
        """Where the job's video is, if it has one."""
        path: str | None = self._job(job_id).result.get("path")
        return path

    async def wait(self, job_id: str, timeout_s: float) -> dict[str, Any]:
        """The record, as soon as the job has ended or the time is over."""
        await self._until(lambda: self._job(job_id).ended, timeout_s)
        return self._job(job_id).to_dict()

    async def cancel(self, job_id: str) -> dict[str, Any]:
        """Asks for the end of a job; the record says whether it has ended."""
        job = lifecycle.request_cancel(self._job(job_id), time.time())
        await self._put(job)
        return job.to_dict()

    async def claim(
        self, replica: str, info: dict[str, Any], timeout_s: float
    ) -> dict[str, Any] | None:
        """The next job for an idle replica, or None when the time is over. Asking makes the replica known."""
        self.replicas[replica] = _Replica(info)
        if self._reaper is None:
            # Not in the constructor, which has no event loop; and a restarted coordinator is asked anew.
            self._reaper = asyncio.create_task(self._reap())
        await self._until(lambda: self._next() is not None, timeout_s)
        self._seen(replica)
        queued = self._next()
        if queued is None:
            return None
        job = lifecycle.claim(queued, replica, time.time())
        await self._put(job)
        return {
            "id": _attempt(job.id, job.fence),
            "job_id": job.id,
            "fence": job.fence,
            "request": job.request,
            "policy": job.policy,
        }

    async def report(self, job_id: str, fence: int, totals: dict[str, Any]) -> bool:
        """An attempt's progress. False: the attempt is void and should end."""
        job = self._job(job_id)
        try:
            job = lifecycle.report(
                job, fence, totals["step"], totals["total"], totals["summary"], time.time()
            )
        except StaleFence:
            return False
        self._seen(job.replica)
        self.metrics.moved(_attempt(job_id, fence), totals)
        await self._put(job)
        return not job.cancel_requested

    async def keeps_on(self, job_id: str, fence: int, timeout_s: float) -> bool:
        """False as soon as there is a reason to end the attempt, True when the time is over without one."""

        def over() -> bool:
            job = self._job(job_id)
            current = job.fence == fence and job.status is Status.RUNNING
            return job.cancel_requested or not current

        return not await self._until(over, timeout_s)

    async def finish(
        self, job_id: str, fence: int, result: dict[str, Any], error: dict[str, Any] | None
    ) -> bool:
        """Publishes an attempt's outcome. False: a newer attempt owns the job, nothing was published."""
        job = self._job(job_id)
        self.metrics.attempt_over(_attempt(job_id, fence))
        try:
            if error is None:
                job = lifecycle.succeed(job, fence, result, time.time())
            elif error["retryable"]:
                job = lifecycle.lose(job, fence, self.config.max_attempts, time.time())
            else:
                job = lifecycle.fail(job, fence, error, time.time())
        except StaleFence:
            return False
        await self._put(job)
        return True

    async def health(self) -> dict[str, Any]:
        """Replicas that were seen lately, and how many jobs wait and run."""
        fresh = {k: r.info for k, r in self.replicas.items() if self._alive(r)}
        counts = {s.value: 0 for s in Status}
        for job in self.jobs.values():
            counts[job.status.value] += 1
        return {"replicas": fresh, "jobs": counts}

    async def metrics_text(self) -> str:
        """Prometheus' text format."""
        return self.metrics.text()

    def _job(self, job_id: str) -> Job:
        if job_id not in self.jobs:
            raise NotFound(f"job {job_id!r} is unknown (or expired)", "job_id")
        return self.jobs[job_id]

    def _next(self) -> Job | None:
        return next((j for j in self.jobs.values() if j.status is Status.QUEUED), None)

    def _seen(self, replica: str | None) -> None:
        if replica in self.replicas:
            self.replicas[replica].seen_at = time.time()

    def _alive(self, replica: _Replica) -> bool:
        return time.time() - replica.seen_at < self.config.lease_s

    async def _put(self, job: Job) -> None:
        # The record changes before the first await, so that no transition starts from an old one.
        before = self.jobs.get(job.id)
        self.jobs[job.id] = job
        if job.ended and (before is None or not before.ended):
            self.metrics.job_ended(job.status.value, time.time() - job.created_at)
        await self._notify()

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def _until(self, happened: Callable[[], bool], timeout_s: float) -> bool:
        async with self._changed:
            try:
                await asyncio.wait_for(self._changed.wait_for(happened), timeout_s)
            except TimeoutError:
                return False
            return True

    async def _reap(self) -> None:
        while True:
            await asyncio.sleep(REAP_S)
            for job_id in list(self.jobs):
                # Read anew: a job may have changed while this loop awaited.
                await self._reap_job(self.jobs[job_id], time.time())
            self.replicas = {k: r for k, r in self.replicas.items() if self._alive(r)}

    async def _reap_job(self, job: Job, now: float) -> None:
        if job.status is Status.RUNNING and now - (job.seen_at or now) > self.config.lease_s:
            self.metrics.attempt_over(_attempt(job.id, job.fence))
            await self._put(lifecycle.lose(job, job.fence, self.config.max_attempts, now))
        elif job.ended and now - (job.finished_at or now) > self.config.result_ttl_s:
            del self.jobs[job.id]
            if "path" in job.result:
                _remove(Path(job.result["path"]))


def _remove(video: Path) -> None:
    try:
        video.unlink(missing_ok=True)
    except OSError as error:
        log.warning("expired video %s stays: %s", video, error)


def _attempt(job_id: str, fence: int) -> str:
    return f"{job_id}#{fence}"


def connect(application: str, config: ServiceConfig) -> Any:
    """Handle of a Serve application's coordinator, started on first use. It outlives replicas and ingress."""
    actor = ray.remote(Coordinator)
    return actor.options(
        name=f"coordinator-{application}",
        namespace=NAMESPACE,
        get_if_exists=True,
        lifetime="detached",
        num_cpus=0,
        max_concurrency=1000,
        max_restarts=-1,
        # A replica's children live in its placement group and die with it, even detached ones.
        scheduling_strategy=PlacementGroupSchedulingStrategy(placement_group=None),
    ).remote(config)
