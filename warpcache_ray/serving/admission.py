"""Which job is next, and what that means for those who wait, as pure functions of the job records.

Cost: foretold from a job's size and its policy, corrected by what jobs took before (`Rates`).

Order: classes go by priority, but one that was passed over `PATIENCE` times has the next turn. Within a class clients
share by start-time fair queueing (Goyal, Vin, Cheng: Start-time Fair Queueing, SIGCOMM 1996), which needn't know how
fast the server is. A claimed job carries a virtual start, which is the larger one of its client's last virtual finish
and the last start in its class, and a virtual finish, which is its cost over its client's weight later. The smallest
start is next, a client's own jobs follow each other as they came: a flood delays none but its sender. A job whose
attempt was lost goes to the head of its class. All of this is in the records, so it outlives the process that asks.
"""

from __future__ import annotations

import heapq
import math
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Literal, NamedTuple, get_args

from warpcache_ray.core.policies.auto import DEFAULT_SHARE, Auto
from warpcache_ray.core.policies.never import Never
from warpcache_ray.errors import AttemptTimeout, DeadlineExceeded, QueueTimeout
from warpcache_ray.serving import lifecycle
from warpcache_ray.serving.lifecycle import Job, Status
from warpcache_ray.serving.pace import volume_of

Priority = Literal["high", "normal", "low"]
PRIORITIES: tuple[Priority, ...] = get_args(Priority)
PATIENCE = 8
"""How many jobs of higher classes may go before a class that waits."""

USUAL_SHARE = 0.5
"""Of the denoiser's calls, where the policy decides as it goes."""
FIRST_RATE = 1e-7
"""Seconds per unit until a job has ended: the order of a model of 1.3 B parameters on a data centre's GPU."""
KEPT = 16
"""How many jobs a rate is the median of."""

Cost = Callable[[Job], float]
"""Worker-seconds that a whole attempt at a job takes."""


def expected_share(policy: Mapping[str, Any], steps: int) -> float:
    """The share of the denoiser's calls that a policy makes in so many steps."""
    if policy["name"] == Never.name:
        return 1.0
    if policy["name"] == Auto.name:
        calls = policy.get("max_calls") or math.ceil(DEFAULT_SHARE * steps)
        return min(1.0, float(calls / steps))
    return USUAL_SHARE


def work(job: Job) -> float:
    """Units that a job consists of: pixels of the video, times steps that are computed. What the request leaves to the
    pipeline counts as 1."""
    steps = job.request.get("num_inference_steps") or 1
    return volume_of(job.request) * steps * expected_share(job.policy, steps)


@dataclass(slots=True)
class Rates:
    """Seconds per unit by name of policy: the median of what the last `KEPT` jobs took, so that a slow one or two don't
    count. A policy of which none has ended has that of all others."""

    seen: dict[str, deque[float]] = field(default_factory=dict)
    heard: int = 0
    """How many jobs it has learned from."""

    @classmethod
    def of(cls, jobs: Iterable[Job]) -> Rates:
        """What the ended ones among `jobs` tell."""
        rates = cls()
        for job in sorted(jobs, key=lambda job: job.finished_at or 0.0):
            rates.saw(job)
        return rates

    @property
    def known(self) -> bool:
        """False: costs are in proportion to each other, but guesses."""
        return bool(self.seen)

    def saw(self, job: Job) -> None:
        """Learns from a job that its first attempt made whole; others took too long, or did a part."""
        if job.status is not Status.SUCCEEDED or job.fence != 1:
            return
        assert job.started_at is not None
        assert job.finished_at is not None
        took = job.finished_at - job.started_at
        if took <= 0:
            # The clock was set back meanwhile.
            return
        self.seen.setdefault(job.policy["name"], deque(maxlen=KEPT)).append(took / work(job))
        self.heard += 1

    def cost(self, job: Job) -> float:
        """Worker-seconds that a whole attempt will take."""
        name = job.policy["name"]
        told = self.seen.get(name) or [rate for rates in self.seen.values() for rate in rates]
        return work(job) * (median(told) if told else FIRST_RATE)


def admits(waiting: Mapping[str, int], client: str, most: int) -> bool:
    """Whether a client that has so many of the waiting jobs may have another one where `most` may wait: as long as
    there is room, or as long as it has less than its share, which is `most` over the number of clients that wait, with
    itself.

    So the client with the i-th most jobs never has more than `most` / i: when the last of the first i of them came to
    have as many, either there was room for all, or i clients waited. n clients have no more than `most` · (1 + ln n).
    """
    clients = len({*(name for name, count in waiting.items() if count), client})
    return sum(waiting.values()) < most or waiting.get(client, 0) < most // clients


class Turn(NamedTuple):
    """A waiting job, and what its claim charges its client (in worker-seconds, divided by the client's weight)."""

    job: Job
    start: float
    finish: float


def busy_since(active: Iterable[Job], priority: str, now: float) -> float:
    """Since when a class has had work all the time: shares of earlier times are forgotten, as in the paper."""
    return min((j.busy_since for j in active if j.priority == priority), default=now)


def order(jobs: Iterable[Job], cost: Cost, weights: Mapping[str, float]) -> Iterator[Turn]:
    """The waiting ones among all jobs, in the order in which they are handed out if no other comes."""
    classes: dict[str, list[Job]] = {priority: [] for priority in PRIORITIES}
    for job in jobs:
        classes[job.priority].append(job)
    lines = {priority: deque(_line(classes[priority], cost, weights)) for priority in PRIORITIES}
    passed = {priority: _passed(classes, priority) for priority in PRIORITIES}
    while any(lines.values()):
        waiting = [priority for priority in PRIORITIES if lines[priority]]
        impatient = [priority for priority in waiting if passed[priority] >= PATIENCE]
        chosen = impatient[-1] if impatient else waiting[0]
        for priority in waiting[waiting.index(chosen) :]:
            passed[priority] += 1
        passed[chosen] = 0
        yield lines[chosen].popleft()


def _line(jobs: list[Job], cost: Cost, weights: Mapping[str, float]) -> Iterator[Turn]:
    """The order within a class. Jobs that were claimed before and lost go first, and are charged for no more."""
    waiting = sorted((j for j in jobs if j.status is Status.QUEUED), key=_arrival)
    yield from (Turn(j, j.virtual_start, j.virtual_finish) for j in waiting if j.fence)
    lines: dict[str, deque[Job]] = defaultdict(deque)
    for job in waiting:
        if not job.fence:
            lines[job.client].append(job)
    since = min((job.busy_since for job in jobs if not job.ended), default=0.0)
    charged = [job for job in jobs if job.fence and job.busy_since >= since]
    clock = max((job.virtual_start for job in charged), default=0.0)
    starts = dict.fromkeys(lines, clock)
    for job in charged:
        if job.client in starts:
            starts[job.client] = max(starts[job.client], job.virtual_finish)
    heads = [(starts[client], _arrival(line[0]), client) for client, line in lines.items()]
    heapq.heapify(heads)
    while heads:
        start, _, client = heapq.heappop(heads)
        job = lines[client].popleft()
        finish = start + cost(job) / weights.get(client, 1.0)
        yield Turn(job, start, finish)
        if lines[client]:
            heapq.heappush(heads, (finish, _arrival(lines[client][0]), client))


def _arrival(job: Job) -> tuple[float, str]:
    return job.created_at, job.id


def _passed(classes: Mapping[str, list[Job]], priority: str) -> int:
    """How many jobs of higher classes were claimed since this one waits, or since it had a turn."""
    came = [job.created_at for job in classes[priority] if job.status is Status.QUEUED]
    if not came:
        return 0
    since = max(min(came), *(job.started_at or 0.0 for job in classes[priority]))
    higher = PRIORITIES[: PRIORITIES.index(priority)]
    return sum((job.started_at or 0.0) > since for name in higher for job in classes[name])


def remaining(job: Job, cost: Cost, now: float) -> float:
    """Seconds that a running attempt has yet to go: by its pace, or by its job's cost where it may have begun at a
    checkpoint."""
    if job.progress and job.fence == 1:
        assert job.started_at is not None
        return max(0.0, now - job.started_at) * (1 - job.progress) / job.progress
    return cost(job) * (1 - job.progress)


def free_in(running: Iterable[Job], cost: Cost, replicas: int, now: float) -> list[float]:
    """Seconds until each replica is free, the first one first; none where there is no replica."""
    busy = [remaining(job, cost, now) for job in running]
    return sorted(busy + [0.0] * (replicas - len(busy)))


def outlook(
    job: Job,
    turns: Sequence[Turn],
    running: Iterable[Job],
    rates: Rates,
    replicas: int,
    now: float,
) -> dict[str, Any]:
    """Where a job waits (1: it is next) and in how many seconds it will have ended, if no other comes; None where that
    can't be told."""
    position, eta = None, None
    if job.status is Status.RUNNING and (rates.known or job.progress):
        eta = remaining(job, rates.cost, now)
    if job.status is Status.QUEUED:
        free = free_in(running, rates.cost, replicas, now) if rates.known else []
        position = 1 + [turn.job.id for turn in turns].index(job.id)
        for turn in turns[: position if free else 0]:
            eta = free[0] + rates.cost(turn.job)
            heapq.heapreplace(free, eta)
    return {"queue_position": position, "eta_s": None if eta is None else round(eta, 3)}


def retry_after_s(running: Iterable[Job], rates: Rates, replicas: int, now: float) -> float | None:
    """Seconds until a full queue has room: when the first replica is free, it takes a job."""
    return next(iter(free_in(running, rates.cost, replicas, now)), None) if rates.known else None


def expire(job: Job, queue_s: float, attempt_s: float | None, now: float) -> Job:
    """The end of a job whose deadline has passed, that has waited for longer than `queue_s`, or whose attempt takes
    longer than `attempt_s`; one that is told to end already stays as it is."""
    if job.deadline_at is not None and now > job.deadline_at:
        asked = job.request["deadline_s"]
        missed = DeadlineExceeded(f"not done in deadline_s = {asked:g} s", "deadline_s")
        return lifecycle.request_end(job, missed, now)
    if job.status is Status.QUEUED and now - job.waits_since > queue_s:
        late = QueueTimeout(f"no replica took it within queue_timeout_s = {queue_s:g} s")
        return lifecycle.request_end(job, late, now)
    if job.status is Status.RUNNING and attempt_s is not None:
        assert job.started_at is not None
        if now - job.started_at > attempt_s:
            over = AttemptTimeout(f"it took longer than attempt_timeout_s = {attempt_s:g} s")
            return lifecycle.request_end(job, over, now)
    return job
