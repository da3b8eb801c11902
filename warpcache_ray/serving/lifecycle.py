"""The life of a job, as pure functions: queued → running → succeeded | failed | cancelled, and back to queued
when an attempt is lost.

Each claim raises the job's fence; whoever holds an older one can change nothing any more.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any

from warpcache_ray.errors import Cancelled, WarpCacheError, WorkerLost
from warpcache_ray.policy_spec import summarize_policy


class Status(StrEnum):
    """Where a job stands."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


TERMINAL = frozenset({Status.SUCCEEDED, Status.FAILED, Status.CANCELLED})


class StaleFence(Exception):
    """The attempt that speaks is not the job's current one, or the job has ended."""


@dataclass(frozen=True, slots=True)
class Job:
    """One request and all that became of it. Times are unix seconds."""

    id: str
    request: dict[str, Any]
    policy: dict[str, Any]
    created_at: float
    status: Status = Status.QUEUED
    fence: int = 0
    replica: str | None = None
    started_at: float | None = None
    finished_at: float | None = None
    seen_at: float | None = None
    step: int = 0
    total_steps: int | None = None
    cancel_requested: bool = False
    cache: dict[str, Any] = field(default_factory=dict)
    result: dict[str, Any] = field(default_factory=dict)
    error: dict[str, Any] | None = None

    @property
    def ended(self) -> bool:
        """True in a terminal state."""
        return self.status in TERMINAL

    @property
    def progress(self) -> float:
        """Share of the denoising steps that are done; 1 for a success."""
        if self.status is Status.SUCCEEDED:
            return 1.0
        return self.step / self.total_steps if self.total_steps else 0.0

    def to_dict(self) -> dict[str, Any]:
        """The record as it leaves the service; the video's place on disk and the policy's measurements stay inside."""
        record = asdict(self)
        for private in ("seen_at", "cancel_requested"):
            del record[private]
        record["policy"] = summarize_policy(self.policy)
        record["result"] = {k: v for k, v in self.result.items() if k != "path"}
        return record | {"progress": round(self.progress, 4)}


def claim(job: Job, replica: str, now: float) -> Job:
    """A new attempt by `replica`."""
    assert job.status is Status.QUEUED
    return replace(
        job,
        status=Status.RUNNING,
        fence=job.fence + 1,
        replica=replica,
        started_at=now,
        seen_at=now,
        step=0,
    )


def report(job: Job, fence: int, step: int, total: int, cache: dict[str, Any], now: float) -> Job:
    """Progress of the current attempt; renews its lease."""
    _check(job, fence)
    return replace(job, step=step, total_steps=total, cache=cache, seen_at=now)


def succeed(job: Job, fence: int, result: dict[str, Any], now: float) -> Job:
    """The end of an attempt that made its video."""
    _check(job, fence)
    return replace(job, status=Status.SUCCEEDED, result=result, finished_at=now)


def fail(job: Job, fence: int, error: dict[str, Any], now: float) -> Job:
    """The end of an attempt that raised; a cancellation ends as cancelled."""
    _check(job, fence)
    status = Status.CANCELLED if error["code"] == Cancelled.code else Status.FAILED
    return replace(job, status=status, error=error, finished_at=now)


def request_cancel(job: Job, now: float) -> Job:
    """Ends a queued job at once, marks a running one for its replica; an ended job stays as it is."""
    if job.status is Status.QUEUED:
        return _end(job, Status.CANCELLED, Cancelled("cancelled before it started"), now)
    return replace(job, cancel_requested=True) if job.status is Status.RUNNING else job


def lose(job: Job, fence: int, max_attempts: int, now: float) -> Job:
    """What becomes of a job whose attempt's worker is gone: another attempt, or failure after `max_attempts`."""
    _check(job, fence)
    if job.cancel_requested:
        return _end(job, Status.CANCELLED, Cancelled("cancelled; its worker was lost"), now)
    if job.fence >= max_attempts:
        lost = WorkerLost(f"the worker was lost in attempt {job.fence} of {max_attempts}")
        return _end(job, Status.FAILED, lost, now)
    return replace(job, status=Status.QUEUED, replica=None, step=0)


def _end(job: Job, status: Status, error: WarpCacheError, now: float) -> Job:
    return replace(job, status=status, error=error.to_dict(), finished_at=now)


def _check(job: Job, fence: int) -> None:
    if job.status is not Status.RUNNING or job.fence != fence:
        raise StaleFence(f"job {job.id}: fence {fence}, the job is {job.status} at {job.fence}")
