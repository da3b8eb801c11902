"""What a session's cache did."""

from __future__ import annotations

import math
import resource
import time
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from warpcache_ray.core.types import Action, Decision, Operator, Step, Where


@dataclass(frozen=True, slots=True)
class Record:
    """One decision: at which step, on which transformer and branch, and how many blocks ran or were skipped."""

    step: int
    transformer: str
    branch: str
    decision: Decision
    blocks_run: int
    blocks_skipped: int
    layer: int | None = None

    @property
    def site(self) -> str:
        """Transformer and branch (and block, where each decides for itself), dotted."""
        name = f"{self.transformer}.{self.branch}"
        return name if self.layer is None else f"{name}.{self.layer}"


@dataclass(slots=True)
class CacheStats:
    """Decisions of one session, in order, with counts derived from them."""

    policy: dict[str, Any]
    records: list[Record] = field(default_factory=list)
    seconds: float = 0.0
    evictions: int = 0
    cache_bytes: int = 0
    peak_cache_bytes: int = 0
    peak_memory_bytes: int = 0

    def add(self, step: Step, where: Where, decision: Decision, run: int, skipped: int) -> None:
        """Notes one decision."""
        transformer, branch, layer = where
        self.records.append(Record(step.index, transformer, branch, decision, run, skipped, layer))

    def measure(self, began: float | None, device: torch.device) -> None:
        """Notes time since `began` (perf_counter) and the peak of the device's (on CPU the process's) memory."""
        self.seconds = time.perf_counter() - (began or time.perf_counter())
        if device.type == "cuda":
            self.peak_memory_bytes = torch.cuda.max_memory_allocated(device)
        else:
            self.peak_memory_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def count(self, action: Action) -> int:
        """Decisions with this action."""
        return sum(r.decision.action is action for r in self.records)

    def count_operator(self, operator: Operator) -> int:
        """WARP decisions that used this operator."""
        return sum(operator in r.decision.operators for r in self.records)

    @property
    def recomputed(self) -> int:
        """Branch calls computed in full."""
        return self.count(Action.RECOMPUTE)

    @property
    def reused(self) -> int:
        """Branch calls with the cached residual as it was."""
        return self.count(Action.REUSE)

    @property
    def warped(self) -> int:
        """Branch calls with any other approximation."""
        return self.count(Action.WARP)

    @property
    def hits(self) -> int:
        """Reused and warped."""
        return self.reused + self.warped

    @property
    def misses(self) -> int:
        """Recomputes because the drift was over its threshold; forced ones don't count."""
        return sum(not r.decision.skips and r.decision.drift is not None for r in self.records)

    @property
    def blocks_run(self) -> int:
        """Blocks evaluated, probes included."""
        return sum(r.blocks_run for r in self.records)

    @property
    def blocks_skipped(self) -> int:
        """Blocks not evaluated."""
        return sum(r.blocks_skipped for r in self.records)

    @property
    def share_of_calls(self) -> float:
        """Share of the branch calls that were recomputed; 1 for an empty session."""
        return self.recomputed / len(self.records) if self.records else 1.0

    @property
    def share_of_blocks(self) -> float:
        """Share of the blocks that were evaluated; 1 for an empty session."""
        total = self.blocks_run + self.blocks_skipped
        return self.blocks_run / total if total else 1.0

    def by_branch(self) -> dict[str, dict[str, int]]:
        """How many decisions of each kind there were on each branch."""
        counts: dict[str, dict[str, int]] = {}
        for r in self.records:
            kinds = counts.setdefault(r.branch, {})
            kinds[r.decision.kind] = kinds.get(r.decision.kind, 0) + 1
        return counts

    def summary(self) -> dict[str, Any]:
        """Counts and shares, as job records carry them."""
        return {
            "recomputed": self.recomputed,
            "reused": self.reused,
            "warped": self.warped,
            **{o.value: self.count_operator(o) for o in Operator},
            "misses": self.misses,
            "blocks_run": self.blocks_run,
            "blocks_skipped": self.blocks_skipped,
            "share_of_calls": round(self.share_of_calls, 4),
            "share_of_blocks": round(self.share_of_blocks, 4),
            "seconds": round(self.seconds, 4),
            "evictions": self.evictions,
            "peak_cache_bytes": self.peak_cache_bytes,
            "peak_memory_bytes": self.peak_memory_bytes,
        }

    def to_dict(self) -> dict[str, Any]:
        """The summary, the policy and every decision by transformer and branch."""
        branches: dict[str, list[dict[str, Any]]] = {}
        for r in self.records:
            row = {"step": r.step, **asdict(r.decision)}
            branches.setdefault(r.site, []).append(row)
        return {"policy": self.policy, **self.summary(), "branches": branches}

    def timeline(self) -> dict[str, dict[str, list[Any]]]:
        """Every decision by transformer and branch, in columns: step, kind, drift and threshold to four digits (None
        where none was measured, or it isn't finite), reason."""
        columns: dict[str, dict[str, list[Any]]] = {}
        for r in self.records:
            decision = r.decision
            row = {
                "step": r.step,
                "decision": decision.kind,
                "drift": _rounded(decision.drift),
                "threshold": _rounded(decision.threshold),
                "reason": decision.reason,
            }
            kept = columns.setdefault(r.site, {name: [] for name in row})
            for name, value in row.items():
                kept[name].append(value)
        return columns


def _rounded(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(f"{value:.4g}")
