"""What a job's record says in figures. Each only grows in the course of the job's life, so that the difference between
two looks at it is what is new, and a look at what was seen before adds nothing."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

from warpcache_ray.serving.attempts import Attempt, End, useful_shares
from warpcache_ray.serving.lifecycle import Job


class Key(NamedTuple):
    """A metric without its prefix, and the values of its labels."""

    metric: str
    labels: tuple[str, ...] = ()


@dataclass(slots=True)
class Figures:
    """What is counted, and what was observed, in order."""

    counts: defaultdict[Key, float] = field(default_factory=lambda: defaultdict(float))
    observed: defaultdict[Key, list[float]] = field(default_factory=lambda: defaultdict(list))

    def count(self, metric: str, *labels: str, by: float = 1) -> None:
        """Adds to a count."""
        self.counts[Key(metric, labels)] += by

    def observe(self, metric: str, value: float, *labels: str) -> None:
        """Adds an observation; of a time over which the clock was set back, none."""
        self.observed[Key(metric, labels)].append(max(0.0, value))

    def time(self, metric: str, seconds: float, *labels: str) -> None:
        """Seconds, both exactly and in a histogram."""
        self.count(f"{metric}_seconds_total", *labels, by=max(0.0, seconds))
        self.observe(f"{metric}_latency_seconds", seconds, *labels)


def figures_of(job: Job) -> Figures:
    """All figures of a job as it stands."""
    found = Figures()
    found.count("jobs_submitted_total", job.priority)
    if job.attempts and "source" in job.policy_origin:
        found.count("policies_served_total", job.policy_origin["source"])
    if job.lowered_to is not None:
        found.count("jobs_lowered_total", job.lowered_to)
    for attempt in job.attempts:
        _begun(found, attempt)
        _cached(found, attempt)
        if attempt.end is not None:
            found.count("attempts_ended_total", attempt.end)
            _staged(found, attempt)
    for lost, following in pairwise(job.attempts):
        if lost.end is End.LOST and following.first_step_at is not None:
            found.time("recovery", following.first_step_at - lost.seen_at)
    if job.ended:
        _ended(found, job)
    return found


def _begun(found: Figures, attempt: Attempt) -> None:
    found.count("attempts_started_total")
    found.observe("queue_wait_seconds", attempt.waited_s)
    found.count("attempts_resumed_total", by=attempt.resumed_at > 0)
    found.count("checkpoints_kept_total", by=attempt.checkpoints)
    found.count("steps_resumed_total", by=attempt.resumed_at)
    found.count("steps_made_total", by=max(0, attempt.step - attempt.resumed_at))


def _cached(found: Figures, attempt: Attempt) -> None:
    for branch, kinds in attempt.decisions.items():
        for kind, times in kinds.items():
            found.count("decisions_total", branch, kind, by=times)
            if kind == "recompute":
                found.count("recomputes_total", by=times)
            else:
                found.count("cache_hits_total", by=times)
                found.count("warp_operations_total", by=times if kind != "reuse" else 0)
    found.count("cache_misses_total", by=attempt.cache.get("misses", 0))
    found.count("cache_evictions_total", by=attempt.cache.get("evictions", 0))


def _staged(found: Figures, attempt: Attempt) -> None:
    for stage, seconds in attempt.timings.items():
        found.time("stage", seconds, stage)
    run = attempt.cache.get("blocks_run", 0)
    if run:
        skipped = attempt.cache["blocks_skipped"] / run
        saved = attempt.timings.get("denoise", 0.0) * skipped * attempt.ranks
        found.count("saved_worker_seconds_total", by=saved)


def _ended(found: Figures, job: Job) -> None:
    assert job.finished_at is not None
    found.count("requests_total", job.status)
    if job.error is not None:
        found.count("errors_total", job.error["code"])
    found.observe("request_latency_seconds", job.finished_at - job.created_at)
    if job.ending_at is not None:
        found.observe("cancel_latency_seconds", job.finished_at - job.ending_at)
    for attempt, useful in zip(job.attempts, useful_shares(job.attempts), strict=True):
        found.count("useful_worker_seconds_total", by=attempt.worker_seconds * useful)
        if attempt.error is not None:
            wasted = attempt.worker_seconds * (1 - useful)
            found.count("wasted_worker_seconds_total", attempt.error, by=wasted)
