"""The life of a job, as pure functions: queued → running → succeeded | failed | cancelled, and back to queued
when an attempt is lost.

Each claim raises the job's fence; whoever holds an older one can change nothing any more. Epochs say since when cache
states are valid: a job's own rises when an attempt is lost or its request is invalidated.
"""

from __future__ import annotations

import uuid
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any

from warpcache_ray.errors import Cancelled, WarpCacheError, WorkerLost
from warpcache_ray.policy_spec import digest, summarize_policy
from warpcache_ray.serving.attempts import Attempt, End, Progress


class Status(StrEnum):
    """Where a job stands."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


TERMINAL = frozenset({Status.SUCCEEDED, Status.FAILED, Status.CANCELLED})

ANONYMOUS = "anonymous"
"""The client of requests that name none."""

PRIVATE = (
    "client",
    "busy_since",
    "virtual_start",
    "virtual_finish",
    "seen_at",
    "deadline_at",
    "ending",
    "ending_at",
    "key",
    "asked",
    "image",
    "removed",
)
"""Fields of a record that are nobody's business outside of the service."""


def new_id() -> str:
    """An id for a job."""
    return f"job_{uuid.uuid4().hex}"


class StaleFence(Exception):
    """The attempt that speaks is not the job's current one, or the job has ended."""


@dataclass(frozen=True, slots=True)
class Once:
    """What a request that is to be carried out once is known by: its client, that one's key, a digest of what it
    asks."""

    client: str
    key: str
    asked: str


@dataclass(frozen=True, slots=True)
class Delivery:
    """How far the telling of a job's end is, see `webhooks`: when the next attempt is due, once the job has ended
    (None: there will be none), or when it was told."""

    attempts: int = 0
    next_at: float | None = None
    delivered_at: float | None = None
    last_error: str | None = None


@dataclass(frozen=True, slots=True)
class Job:
    """One request and all that became of it. Times are unix seconds."""

    id: str
    request: dict[str, Any]
    policy: dict[str, Any]
    """In full, with all that was measured for it, as long as there may be another attempt; then its summary."""
    created_at: float
    client: str = ANONYMOUS
    busy_since: float = 0.0
    """Since when there has been work in the job's class all the time; clients' shares count from then on."""
    virtual_start: float = 0.0
    virtual_finish: float = 0.0
    """What the job's first claim charged its client, see `admission`."""
    status: Status = Status.QUEUED
    fence: int = 0
    replica: str | None = None
    started_at: float | None = None
    finished_at: float | None = None
    seen_at: float | None = None
    deadline_at: float | None = None
    step: int = 0
    total_steps: int | None = None
    epoch: int = 0
    ending: dict[str, Any] | None = None
    """The error that a running attempt is to end with, since `ending_at`."""
    ending_at: float | None = None
    checkpoint_step: int | None = None
    """How many steps a next attempt needn't make."""
    attempts: tuple[Attempt, ...] = ()
    """All that were made, the newest last."""
    result: dict[str, Any] = field(default_factory=dict)
    error: dict[str, Any] | None = None
    key: str | None = None
    """The idempotency key of the request, if it has one; `asked` is the digest that goes with it."""
    asked: str | None = None
    image: str | None = None
    """Where the image is that the video begins with."""
    removed: bool = False
    """Its owner wants to see no more of it. What it charged its client counts all the same."""
    webhook: Delivery | None = None
    """None: nobody wants to be told of the job's end."""
    policy_summary: dict[str, Any] = field(default_factory=dict)
    policy_version: str = ""
    """Both are told at every look, and made once: a policy may hold thousands of numbers."""
    policy_origin: dict[str, Any] = field(default_factory=dict)
    """Where the policy comes from, see `choices`."""

    def __post_init__(self) -> None:
        if not self.policy_version:
            object.__setattr__(self, "policy_summary", summarize_policy(self.policy))
            object.__setattr__(self, "policy_version", digest(self.policy))

    @property
    def ended(self) -> bool:
        """True in a terminal state."""
        return self.status in TERMINAL

    @property
    def cache(self) -> dict[str, Any]:
        """What the newest attempt's cache did."""
        return self.attempts[-1].cache if self.attempts else {}

    @property
    def priority(self) -> str:
        """The class that the job waits in."""
        return str(self.request.get("priority", "normal"))

    @property
    def waits_since(self) -> float:
        """When it came, or when its lost attempt was last heard of."""
        return self.created_at if self.seen_at is None else self.seen_at

    @property
    def progress(self) -> float:
        """Share of the denoising steps that are done; 1 for a success."""
        if self.status is Status.SUCCEEDED:
            return 1.0
        return self.step / self.total_steps if self.total_steps else 0.0

    def stored(self) -> dict[str, Any]:
        """All of it, as JSON can hold it. The policy is the job's own: to copy it would take longer than all else."""
        return asdict(replace(self, policy={})) | {"policy": self.policy}

    def to_dict(self) -> dict[str, Any]:
        """The record as it leaves the service; the video's place on disk and the policy's measurements stay inside."""
        record = self.stored()
        for private in PRIVATE:
            del record[private]
        record["policy"] = record.pop("policy_summary")
        record["result"] = {k: v for k, v in self.result.items() if k != "path"}
        record["cache"] = self.cache
        record["attempts"] = [attempt.to_dict() for attempt in self.attempts]
        return record | {"progress": round(self.progress, 4)}


def claim(job: Job, replica: str, epoch: int, now: float, ranks: int = 1) -> Job:
    """A new attempt by `replica` with its `ranks`; `epoch` is the model's.

    Raises:
        StaleFence: the job doesn't wait any more.
    """
    if job.status is not Status.QUEUED:
        raise StaleFence(f"job {job.id} is {job.status}")
    fence, epoch, waited = job.fence + 1, max(job.epoch, epoch), now - job.waits_since
    attempt = Attempt(fence, replica, ranks, epoch, waited, started_at=now, seen_at=now)
    return replace(
        job,
        status=Status.RUNNING,
        fence=fence,
        epoch=epoch,
        attempts=(*job.attempts, attempt),
        replica=replica,
        started_at=now,
        seen_at=now,
        step=0,
    )


@dataclass(frozen=True, slots=True)
class Order:
    """What an attempt is to do at its next step: end, or go on in an epoch."""

    epoch: int = 0
    cancel: bool = False


def order(job: Job, fence: int, epoch: int) -> Order:
    """The order for the attempt with this fence; `epoch` is the model's."""
    current = job.fence == fence and job.status is Status.RUNNING
    return Order(max(job.epoch, epoch), cancel=not current or job.ending is not None)


def report(job: Job, fence: int, progress: Progress, now: float) -> Job:
    """Progress of the current attempt; renews its lease. An older report that comes late does no more than that."""
    _check(job, fence)
    if progress.step < job.step:
        return replace(job, seen_at=now)
    return replace(
        job,
        attempts=(*job.attempts[:-1], job.attempts[-1].heard(progress, now)),
        step=progress.step,
        total_steps=progress.total,
        checkpoint_step=progress.checkpoint_step or job.checkpoint_step,
        seen_at=now,
    )


def succeed(job: Job, fence: int, result: dict[str, Any], now: float) -> Job:
    """The end of an attempt that made its video. Said again, for the answer was lost, it changes nothing."""
    if job.status is Status.SUCCEEDED and job.fence == fence:
        return job
    _check(job, fence)
    job = _ended(job, Status.SUCCEEDED, now, result=result)
    return _over(job, End.SUCCEEDED, now, timings=result.get("timings", {}))


def fail(job: Job, fence: int, error: dict[str, Any], now: float) -> Job:
    """The end of an attempt that raised; one that was told to end does so for the reason that it was told. Said again,
    it changes nothing."""
    if job.status in (Status.FAILED, Status.CANCELLED) and job.fence == fence:
        return job
    _check(job, fence)
    told = job.ending if error["code"] == Cancelled.code else None
    return _end(job, told or error, now)


def request_end(job: Job, reason: WarpCacheError, now: float) -> Job:
    """Ends a queued job at once, marks a running one for its replica (the first reason counts); an ended job stays
    as it is."""
    if job.status is Status.QUEUED:
        return _end(job, reason.to_dict(), now)
    if job.status is Status.RUNNING and job.ending is None:
        return replace(job, ending=reason.to_dict(), ending_at=now)
    return job


def invalidate(job: Job, epoch: int) -> Job:
    """What the job's attempts kept before counts no more."""
    return job if job.ended else replace(job, epoch=epoch)


def lose(
    job: Job,
    fence: int,
    max_attempts: int,
    epoch: int,
    now: float,
    error: dict[str, Any] | None = None,
) -> Job:
    """What becomes of a job whose attempt came to nothing, for its worker is gone or for another `error` that may not
    come again: another attempt, in a new epoch and from the last checkpoint, or failure after `max_attempts`."""
    _check(job, fence)
    job = _over(job, End.LOST, now, error["code"] if error else WorkerLost.code)
    if job.ending is not None:
        return _end(job, job.ending, now)
    attempts = sum(attempt.end is not End.HANDED_BACK for attempt in job.attempts)
    if attempts >= max_attempts:
        lost = WorkerLost(f"the worker was lost in attempt {attempts} of {max_attempts}")
        if error is None or error["code"] == WorkerLost.code:
            error = lost.to_dict()
        return _end(job, error, now)
    return replace(job, status=Status.QUEUED, replica=None, step=0, epoch=epoch)


def hand_back(job: Job, fence: int, epoch: int, now: float) -> Job:
    """What becomes of a job whose attempt's replica is shut down: another attempt, which goes on from the last
    checkpoint in a new epoch; this one doesn't count."""
    _check(job, fence)
    if job.ending is not None:
        return _end(job, job.ending, now)
    job = _over(job, End.HANDED_BACK, now, End.HANDED_BACK)
    return replace(job, status=Status.QUEUED, replica=None, step=0, epoch=epoch)


def _end(job: Job, error: dict[str, Any], now: float) -> Job:
    cancelled = error["code"] == Cancelled.code
    if job.attempts and job.attempts[-1].end is None:
        job = _over(job, End.CANCELLED if cancelled else End.FAILED, now, error["code"])
    status = Status.CANCELLED if cancelled else Status.FAILED
    return _ended(job, status, now, error=error)


def _ended(job: Job, status: Status, now: float, **outcome: Any) -> Job:
    return replace(job, status=status, policy=job.policy_summary, finished_at=now, **outcome)


def _over(
    job: Job,
    end: End,
    now: float,
    error: str | None = None,
    timings: dict[str, float] | None = None,
) -> Job:
    """The job, its attempt at its end."""
    last = job.attempts[-1].over(end, now, error, timings)
    return replace(job, attempts=(*job.attempts[:-1], last))


def _check(job: Job, fence: int) -> None:
    if job.status is not Status.RUNNING or job.fence != fence:
        raise StaleFence(f"job {job.id}: fence {fence}, the job is {job.status} at {job.fence}")
