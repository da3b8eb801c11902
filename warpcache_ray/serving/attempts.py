"""An attempt at a job, as it stands in the job's record: who made it, how far it came, how it ended, what it took."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from enum import StrEnum
from typing import Any


class End(StrEnum):
    """How an attempt may end. The last two aren't the job's end: its worker was lost, or its replica was shut down."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    LOST = "lost"
    HANDED_BACK = "handed_back"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an attempt is: steps made and to make, what its cache did, the step of its newest checkpoint, how many it
    has kept, the step that it went on from, its decisions by branch and kind, the drifts that it measured, and the
    bytes that the caches of its ranks hold."""

    step: int
    total: int
    cache: dict[str, Any] = field(default_factory=dict)
    checkpoint_step: int | None = None
    checkpoints: int = 0
    resumed_at: int = 0
    decisions: dict[str, dict[str, int]] = field(default_factory=dict)
    drifts: Sequence[float] = ()
    cache_bytes: int = 0

    @staticmethod
    def told(totals: Mapping[str, Any]) -> Progress:
        """What a replica's report says; what it leaves out is as at the beginning."""
        known = {f.name: totals[f.name] for f in fields(Progress) if f.name in totals}
        return Progress(**known, cache=totals["summary"])


@dataclass(frozen=True, slots=True)
class Attempt:
    """Times are unix seconds, `epoch` is the one that it began in."""

    fence: int
    replica: str
    ranks: int
    epoch: int
    waited_s: float
    """How long the job had waited for it."""
    started_at: float
    seen_at: float
    """When it was last heard of."""
    first_step_at: float | None = None
    ended_at: float | None = None
    end: End | None = None
    error: str | None = None
    """The code of the error that it ended with."""
    resumed_at: int = 0
    """How many steps an earlier attempt had made."""
    step: int = 0
    checkpoint_step: int | None = None
    checkpoints: int = 0
    decisions: dict[str, dict[str, int]] = field(default_factory=dict)
    drifts: int = 0
    """How many it measured."""
    cache: dict[str, Any] = field(default_factory=dict)
    cache_bytes: int = 0
    timings: dict[str, float] = field(default_factory=dict)
    """Seconds of each stage, of one that succeeded."""

    @property
    def worker_seconds(self) -> float:
        """What it took of its replica's ranks; 0 before its end, or where the clock was set back meanwhile."""
        if self.ended_at is None:
            return 0.0
        return max(0.0, self.ended_at - self.started_at) * self.ranks

    def heard(self, progress: Progress, now: float) -> Attempt:
        """After a report."""
        begun = now if progress.step else None
        return replace(
            self,
            seen_at=now,
            first_step_at=self.first_step_at or begun,
            resumed_at=progress.resumed_at,
            step=progress.step,
            checkpoint_step=progress.checkpoint_step,
            checkpoints=progress.checkpoints,
            decisions=progress.decisions,
            drifts=len(progress.drifts),
            cache=progress.cache,
            cache_bytes=progress.cache_bytes,
        )

    def over(
        self,
        end: End,
        now: float,
        error: str | None = None,
        timings: Mapping[str, float] | None = None,
    ) -> Attempt:
        """At its end."""
        kept = dict(timings or {})
        return replace(self, ended_at=now, end=end, error=error, timings=kept, cache_bytes=0)

    def to_dict(self) -> dict[str, Any]:
        """As the job's public record has it."""
        return asdict(self) | {"worker_seconds": round(self.worker_seconds, 3)}

    @staticmethod
    def read(stored: Mapping[str, Any]) -> Attempt:
        """From the store's JSON."""
        end = stored["end"]
        return Attempt(**{**stored, "end": end and End(end)})


def together(told: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What a replica's ranks tell, the first one first, as one report. They decide alike, so the first one's word
    counts; but each has a cache and a memory of its own: caches are summed, of memories the largest is named."""
    first, summaries = told[0], [rank["summary"] for rank in told if rank["summary"]]
    summary = first["summary"]
    if summary:
        caches = sum(s["peak_cache_bytes"] for s in summaries)
        memory = max(s["peak_memory_bytes"] for s in summaries)
        summary = summary | {"peak_cache_bytes": caches, "peak_memory_bytes": memory}
    return first | {"summary": summary, "cache_bytes": sum(rank["cache_bytes"] for rank in told)}


def useful_shares(attempts: Sequence[Attempt]) -> list[float]:
    """How much of each attempt's worker-seconds is in the video: all of those of the one that published it; of one that
    was lost, the share of its steps from which the others went on; nothing where there is no video."""
    shares = [0.0] * len(attempts)
    if not attempts or attempts[-1].end is not End.SUCCEEDED:
        return shares
    shares[-1], needed = 1.0, attempts[-1].resumed_at
    for place in range(len(attempts) - 2, -1, -1):
        attempt = attempts[place]
        if attempt.resumed_at < needed <= attempt.step:
            shares[place] = (needed - attempt.resumed_at) / (attempt.step - attempt.resumed_at)
            needed = attempt.resumed_at
    return shares
