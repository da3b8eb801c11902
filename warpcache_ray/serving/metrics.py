"""Every metric that the service exports, in one table, and the counters that it is made of."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

from warpcache_ray.config import ServiceConfig
from warpcache_ray.serving.admission import PRIORITIES, Cost
from warpcache_ray.serving.attempts import End
from warpcache_ray.serving.choices import Source
from warpcache_ray.serving.figures import Figures, Key, figures_of
from warpcache_ray.serving.lifecycle import TERMINAL, Job, Status
from warpcache_ray.serving.schemas import LADDER
from warpcache_ray.store.connection import Answers
from warpcache_ray.store.policies import Policies

PREFIX = "warpcache_"

_DRIFT = (0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.12, 0.16, 0.24, 0.32, 0.5, 1.0, 2.0)
_LONG = (0.5, 1, 2, 5, 10, 20, 40, 80, 160, 320, 640, 1280)
SHORT = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 40)

_PSNR = (15, 20, 25, 28, 30, 32, 34, 36, 38, 40, 45, 50, 60, 80)
_SSIM = (0.5, 0.7, 0.8, 0.9, 0.95, 0.97, 0.98, 0.99, 0.995, 0.998, 0.999, 1.0)
_OF_VERSION = ("slot", "version")

AUDITED = ("kept", "missed", "left", "failed")
STEPS = ("promote", "rollback", "step_down", "withdraw")
STAGES = ("text", "denoise", "decode", "encode", "store")


@dataclass(frozen=True, slots=True)
class Metric:
    """A row of the table. `values` are those of its one label that are there from the start, at 0."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    values: Sequence[str] = ()
    buckets: Sequence[float] = ()

    def collector(self, registry: CollectorRegistry) -> Counter | Gauge | Histogram:
        """It, at 0."""
        made: Counter | Gauge | Histogram
        if self.kind == "histogram":
            made = Histogram(
                PREFIX + self.name, self.help, self.labels, buckets=self.buckets, registry=registry
            )
        else:
            kind = Counter if self.kind == "counter" else Gauge
            made = kind(PREFIX + self.name, self.help, self.labels, registry=registry)
        for value in self.values:
            made.labels(value)
        return made

    @property
    def markdown(self) -> str:
        """Its row in a table for readers."""
        labels = f"{{{','.join(self.labels)}}}" if self.labels else ""
        return f"| `{PREFIX}{self.name}{labels}` | {self.help} |"


def _counter(name: str, help: str, *labels: str, values: Iterable[str] = ()) -> Metric:
    return Metric(name, "counter", help, labels, tuple(values))


def _gauge(name: str, help: str, *labels: str, values: Iterable[str] = ()) -> Metric:
    return Metric(name, "gauge", help, labels, tuple(values))


def _histogram(
    name: str, help: str, buckets: Sequence[float], *labels: str, values: Iterable[str] = ()
) -> Metric:
    return Metric(name, "histogram", help, labels, tuple(values), buckets)


TABLE = (
    _counter("jobs_submitted_total", "jobs that were taken in", "priority", values=PRIORITIES),
    _counter("jobs_lowered_total", "jobs that load brought to a lower quality", "quality", values=LADDER),
    _counter("requests_total", "jobs that ended", "status", values=sorted(TERMINAL)),
    _counter("errors_total", "jobs that failed or were cancelled, by the error's code", "code"),
    _histogram("request_latency_seconds", "submission to end", _LONG),
    _histogram("cancel_latency_seconds", "wish to end a running job to its end", SHORT),
    _gauge("jobs_running", "jobs that replicas are at"),
    _gauge("queue_jobs", "jobs that wait", "priority", values=PRIORITIES),
    _gauge("queue_cost_seconds", "seconds of a replica that they will take"),
    _histogram("queue_wait_seconds", "submission (or loss) to a replica's claim", _LONG),
    _counter("attempts_started_total", "claims of a job by a replica"),
    _counter("attempts_ended_total", "attempts by how they ended; `lost`: worker or storage failed", "end", values=End),
    _counter("attempts_resumed_total", "attempts that went on from a checkpoint"),
    _counter("checkpoints_kept_total", "checkpoints that were written"),
    _counter("steps_made_total", "denoising steps"),
    _counter("steps_resumed_total", "steps that a checkpoint saved from being made again"),
    _histogram("recovery_latency_seconds", "last word of a lost attempt to the next one's first step", _LONG),
    _counter("recovery_seconds_total", "the same, summed"),
    _counter(
        "useful_worker_seconds_total",
        "seconds × ranks of attempts whose video was published, and of lost ones for the share of their steps "
        "that others went on from; counted at the job's end",
    ),
    _counter(
        "wasted_worker_seconds_total",
        "all other seconds × ranks, by the code of the error that the attempt ended with",
        "reason",
    ),
    _counter(
        "saved_worker_seconds_total",
        "estimate of what the caches saved: published attempts' denoising time × ranks × blocks skipped / blocks run",
    ),
    _gauge("gpu_second_price", "`gpu_second_price` of the configuration, to multiply these with"),
    _counter("stage_seconds_total", "seconds of published attempts, by stage", "stage", values=STAGES),
    _histogram("stage_latency_seconds", "the same, as a histogram", _LONG, "stage", values=STAGES),
    _counter(
        "decisions_total",
        "decisions by branch and kind: `recompute`, `reuse`, or how one approximated (`forecast`, `blend+spatial`, …)",
        "branch",
        "decision",
    ),
    _counter("cache_hits_total", "branch calls reused or warped"),
    _counter("cache_misses_total", "branch calls recomputed because their drift was over the threshold"),
    _counter("recomputes_total", "misses and forced ones (warm-up, last step)"),
    _counter("warp_operations_total", "branch calls warped"),
    _counter("cache_evictions_total", "sessions that lost what they held, for lack of room"),
    _gauge("hit_rate", "hits / (hits + misses)"),
    _gauge("cache_size", "bytes held by running jobs' caches, of all ranks"),
    _histogram("drift_observed", "drift at each decision", _DRIFT),
    _gauge("peak_memory_bytes", "device memory (on CPU the process's) of the largest rank of any attempt"),
    _gauge("epoch", "the newest epoch"),
    _counter("policies_served_total", "jobs that were begun, by where their policy came from", "source", values=Source),
    _gauge("policy_info", "1 for each published version that serves requests, by its part", "slot", "version", "part"),
    _gauge("policy_store_away", "1 while published policies are those last known, as the store can't be asked"),
    _gauge("replicas_ready", "replicas that were heard of within `lease_s`"),
    _gauge("ranks_ready", "their ranks"),
    _gauge("load_seconds", "how long the slowest of them took to load the model"),
    _gauge("weight_bytes", "what the model's weights take on each rank"),
    _gauge("store_up", "1, or 0 where the store didn't take the last call"),
    _counter("store_errors_total", "calls that it didn't take, after retries"),
    _counter("store_away_seconds_total", "from such a call to the next one that it took"),
    _counter("audit_runs_total", "audits by what came of them; `left`: off, for a job", "outcome", values=AUDITED),
    _histogram("audit_psnr_db", "PSNR of audited videos against their uncached run", _PSNR),
    _histogram("audit_ssim", "SSIM of the same", _SSIM),
    _gauge("audit_requests", "audited requests of a version in force, of all replicas and restarts", *_OF_VERSION),
    _gauge("audit_misses", "those of them that missed the policy's target", *_OF_VERSION),
    _gauge(
        "audit_evidence",
        "e-value for the promise being `broken` or `kept`; 1 / delta (20, if none is given) decides",
        *_OF_VERSION,
        "verdict",
    ),
    _counter("audit_steps_total", "what audits did about policies", "step", values=STEPS),
)  # fmt: skip


@dataclass(slots=True)
class _Seen:
    """What was counted of a job that hasn't ended."""

    figures: Figures
    drifts: int


class Metrics:
    """Counts what the jobs' records say. They outlive replicas, so no total falls when one dies; whatever is told twice
    or late changes no record, or grows none of its figures, and so counts once. A coordinator that is started anew
    begins at 0 (as Prometheus expects of a process) and counts what its jobs do from then on."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._collectors = {row.name: row.collector(self.registry) for row in TABLE}
        self._seen: dict[str, _Seen] = {}
        """By id, of those that haven't ended."""
        self._store = Figures()
        self._sums: defaultdict[str, float] = defaultdict(float)
        self._largest: dict[str, float] = {}

    def know(self, jobs: Iterable[Job]) -> None:
        """Takes these jobs, as the store has them, for counted. What another process counted and didn't store counts
        again: at most the last seconds' steps."""
        self._seen |= {j.id: _Seen(figures_of(j), _drifts(j)) for j in jobs if not j.ended}

    def saw(self, job: Job) -> None:
        """Counts what is new about a job."""
        if job.id not in self._seen:
            if job.ended:
                return
            self._seen[job.id] = _Seen(Figures(), 0)
        figures = figures_of(job)
        self._count(self._seen[job.id].figures, figures)
        if job.ended:
            del self._seen[job.id]
        self.raised(job.epoch)
        self._raise("peak_memory_bytes", job.cache.get("peak_memory_bytes", 0))

    def measured(self, job: Job, drifts: Sequence[float]) -> None:
        """Takes all drifts that the job's attempt has seen."""
        seen = self._seen.get(job.id)
        if seen is None:
            return
        fresh = min(len(drifts), max(0, _drifts(job) - seen.drifts))
        for drift in drifts[len(drifts) - fresh :]:
            if math.isfinite(drift):
                self._of(Key("drift_observed")).observe(drift)
        seen.drifts += fresh

    def raised(self, epoch: int) -> None:
        """Takes an epoch, which may be an old one."""
        self._raise("epoch", epoch)

    def standing(
        self, jobs: Collection[Job], cost: Cost, replicas: int, config: ServiceConfig
    ) -> None:
        """Takes how things stand: the jobs, what waiting ones will take, how many replicas are ready."""
        waiting = [job for job in jobs if job.status is Status.QUEUED]
        running = [job for job in jobs if job.status is Status.RUNNING]
        for priority in PRIORITIES:
            self._set("queue_jobs", sum(job.priority == priority for job in waiting), priority)
        self._set("queue_cost_seconds", sum(map(cost, waiting)))
        self._set("jobs_running", len(running))
        self._set("cache_size", sum(job.attempts[-1].cache_bytes for job in running))
        self._set("replicas_ready", replicas)
        self._set("ranks_ready", replicas * config.parallel.world_size)
        self._set("gpu_second_price", config.gpu_second_price)

    def published(self, slots: Iterable[Policies], away: bool) -> None:
        """Takes what is published."""
        self._collectors["policy_info"].clear()
        for slot in slots:
            for part, version in (("active", slot.active), ("canary", slot.canary)):
                if version is not None:
                    self._set("policy_info", 1, slot.key, str(version.number), part)
        self._set("policy_store_away", away)

    def loaded(self, replicas: Collection[Mapping[str, Any]]) -> None:
        """Takes what the replicas tell of their model."""
        for name in ("load_seconds", "weight_bytes"):
            self._set(name, max((told.get(name, 0) for told in replicas), default=0))

    def stored(self, answers: Answers) -> None:
        """Takes how the store has answered."""
        now = Figures()
        now.count("store_errors_total", by=answers.failures)
        now.count("store_away_seconds_total", by=answers.away_s)
        self._count(self._store, now)
        self._set("store_up", not answers.away)

    def audited(self, outcome: str, psnr: float | None = None, ssim: float | None = None) -> None:
        """Takes what came of an audit, and what it measured."""
        self._of(Key("audit_runs_total", (outcome,))).inc()
        for name, quality in (("audit_psnr_db", psnr), ("audit_ssim", ssim)):
            if quality is not None:
                self._of(Key(name)).observe(quality)

    def audits_stand(self, slot: str, standings: Sequence[Mapping[str, Any]]) -> None:
        """Takes how the versions stand that a slot has in force; others of it are no more."""
        for name in ("audit_requests", "audit_misses", "audit_evidence"):
            self._collectors[name].remove_by_labels({"slot": slot})
        for standing in standings:
            labels = (slot, str(standing["version"]))
            self._set("audit_requests", standing["requests"], *labels)
            self._set("audit_misses", standing["misses"], *labels)
            for verdict, evidence in standing["evidence"].items():
                self._set("audit_evidence", evidence, *labels, verdict)

    def stepped(self, step: str) -> None:
        """Takes what audits did about a policy."""
        self._of(Key("audit_steps_total", (step,))).inc()

    def text(self) -> str:
        """Prometheus' text format."""
        return generate_latest(self.registry).decode()

    def _count(self, seen: Figures, now: Figures) -> None:
        """Adds what `now` has over `seen`, which then has it too."""
        for key, value in now.counts.items():
            new = value - seen.counts.get(key, 0)
            if new > 0:
                self._of(key).inc(new)
                self._sums[key.metric] += new
                seen.counts[key] = value
        for key, values in now.observed.items():
            for value in values[len(seen.observed[key]) :]:
                self._of(key).observe(value)
                seen.observed[key].append(value)
        asked = self._sums["cache_hits_total"] + self._sums["cache_misses_total"]
        self._set("hit_rate", self._sums["cache_hits_total"] / asked if asked else 0.0)

    def _raise(self, metric: str, value: float) -> None:
        self._largest[metric] = max(self._largest.get(metric, 0), value)
        self._set(metric, self._largest[metric])

    def _set(self, metric: str, value: float, *labels: str) -> None:
        self._of(Key(metric, labels)).set(value)

    def _of(self, key: Key) -> Any:
        collector = self._collectors[key.metric]
        return collector.labels(*key.labels) if key.labels else collector


def _drifts(job: Job) -> int:
    return sum(attempt.drifts for attempt in job.attempts)
