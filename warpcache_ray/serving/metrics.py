"""Every metric that the service exports, in one table, and what moves it."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from warpcache_ray.serving.admission import PRIORITIES
from warpcache_ray.serving.lifecycle import Job

_DRIFT_BUCKETS = (0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.12, 0.16, 0.24, 0.32, 0.5, 1.0, 2.0)
_LATENCY_BUCKETS = (0.5, 1, 2, 5, 10, 20, 40, 80, 160, 320, 640, 1280)

_CANCEL_BUCKETS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 40)

_COUNTED = ("hits", "misses", "warped", "recomputed")


class Metrics:
    """The counters live beside the job records, so they survive any replica.

    An attempt reports running totals; `moved` adds what is new since its last report, so a report that arrives
    twice counts once.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        r = self.registry
        self.requests = Counter(
            "warpcache_requests", "Jobs that ended, by status", ["status"], registry=r
        )
        self.hits = Counter("warpcache_cache_hits", "Branch calls reused or warped", registry=r)
        self.misses = Counter(
            "warpcache_cache_misses", "Branch calls recomputed for their drift", registry=r
        )
        self.warps = Counter("warpcache_warp_operations", "Branch calls warped", registry=r)
        self.recomputes = Counter(
            "warpcache_recomputes", "Branch calls recomputed: misses and forced ones", registry=r
        )
        self.size = Gauge(
            "warpcache_cache_size", "Bytes held by the caches of running jobs", registry=r
        )
        self.hit_rate = Gauge(
            "warpcache_hit_rate", "Hits / (hits + misses), over all time", registry=r
        )
        self.latency = Histogram(
            "warpcache_request_latency_seconds",
            "From submission to the end of a job",
            buckets=_LATENCY_BUCKETS,
            registry=r,
        )
        self.drift = Histogram(
            "warpcache_drift_observed", "Drift at decisions", buckets=_DRIFT_BUCKETS, registry=r
        )
        self.cancel_latency = Histogram(
            "warpcache_cancel_latency_seconds",
            "From the wish to end a running job to its end",
            buckets=_CANCEL_BUCKETS,
            registry=r,
        )
        self.queue = Gauge("warpcache_queue_jobs", "Jobs that wait", ["priority"], registry=r)
        self.queue_cost = Gauge(
            "warpcache_queue_cost_seconds", "Worker-seconds that waiting jobs will take", registry=r
        )
        self.queue_wait = Histogram(
            "warpcache_queue_wait_seconds",
            "From submission (or loss) to a replica's claim",
            buckets=_LATENCY_BUCKETS,
            registry=r,
        )
        self.lost = Counter(
            "warpcache_attempts_lost", "Attempts whose worker or storage failed", registry=r
        )
        self.epoch = Gauge("warpcache_epoch", "The newest epoch", registry=r)
        self.memory = Gauge(
            "warpcache_peak_memory_bytes", "Largest device memory of any attempt", registry=r
        )
        self._peak = 0
        self._reported: dict[str, dict[str, int]] = {}
        self._sizes: dict[str, int] = {}
        self._sums = dict.fromkeys(_COUNTED, 0)

    def moved(self, attempt: str, totals: dict[str, Any]) -> None:
        """Takes an attempt's running totals and all drifts that it has seen."""
        seen = self._reported.setdefault(attempt, dict.fromkeys((*_COUNTED, "drifts"), 0))
        counters = (self.hits, self.misses, self.warps, self.recomputes)
        for name, counter in zip(_COUNTED, counters, strict=True):
            new = max(0, totals[name] - seen[name])
            counter.inc(new)
            self._sums[name] += new
            seen[name] = max(seen[name], totals[name])
        for drift in totals["drifts"][seen["drifts"] :]:
            if math.isfinite(drift):
                self.drift.observe(drift)
        seen["drifts"] = max(seen["drifts"], len(totals["drifts"]))
        asked = self._sums["hits"] + self._sums["misses"]
        self.hit_rate.set(self._sums["hits"] / asked if asked else 0.0)
        self._resize(attempt, totals["cache_bytes"])
        self._peak = max(self._peak, totals["peak_memory_bytes"])
        self.memory.set(self._peak)

    def attempt_over(self, attempt: str) -> None:
        """Forgets an attempt; its counts stay."""
        self._reported.pop(attempt, None)
        self._resize(attempt, 0)

    def job_ended(self, job: Job) -> None:
        """Counts a job that reached a terminal state."""
        assert job.finished_at is not None
        self.requests.labels(job.status.value).inc()
        self.latency.observe(job.finished_at - job.created_at)
        if job.ending_at is not None:
            self.cancel_latency.observe(job.finished_at - job.ending_at)

    def queued(self, jobs: Collection[Job], cost_s: float) -> None:
        """Takes the jobs that wait, and what they will take."""
        for priority in PRIORITIES:
            self.queue.labels(priority).set(sum(job.priority == priority for job in jobs))
        self.queue_cost.set(cost_s)

    def text(self) -> str:
        """Prometheus' text format."""
        return generate_latest(self.registry).decode()

    def _resize(self, attempt: str, size: int) -> None:
        self._sizes[attempt] = size
        self._sizes = {a: s for a, s in self._sizes.items() if s}
        self.size.set(sum(self._sizes.values()))
