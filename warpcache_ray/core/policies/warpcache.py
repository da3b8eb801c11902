"""warp-cache (its README): saliency-weighted cosine drift, a threshold that shrinks with motion, three decisions.

threshold = max(min, base · exp(-scale · motion)) · phase. RECOMPUTE from the threshold on, REUSE below the warp
threshold, WARP between; for each block by itself, on its input. What the README leaves open is settled like this:

- drift is taken against the last recompute, per token, weighted by (channel variance)^power of the kept input; `l2` is
  the weighted norm of the change over that of the kept input.
- motion is the relative L1 change of the block's input, at most 1: shards of the tokens can add theirs up, and a field
  per block and step would cost more than many a block. The field is matched only where a WARP uses it.
- phase is 0.5 in the first fifth of the run, 1.5 in the last, linear between; 1 where the length isn't known.
- the warp threshold shrinks and grows with the threshold, so that there always is a middle.
- a WARP moves the cached residual.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from warpcache_ray.core.drift import furthest, l1_sums, ratio, token_cosine, token_l2
from warpcache_ray.core.policy import Measured, Policy, Reading, require
from warpcache_ray.core.saliency import token_saliency
from warpcache_ray.core.thresholds import motion_exponential, phase_multiplier
from warpcache_ray.core.types import (
    Action,
    BranchState,
    Decision,
    Features,
    Operator,
    Site,
    Snapshot,
    Step,
)

if TYPE_CHECKING:
    from torch import Tensor


class _Sums(NamedTuple):
    """Weighted change of the input and what it is relative to; its plain L1 change and magnitude."""

    change: float
    weight: float
    motion: float
    extent: float


@dataclass(frozen=True, kw_only=True)
class WarpCache(Policy):
    """Defaults are the seed's, as is the preset `balanced`. The other presets' numbers are ours: `fast` doubles the
    thresholds; `quality` takes an eighth, since a cosine drift goes with the square of the change."""

    name: ClassVar[str] = "warpcache"
    site: ClassVar[Site] = Site.LAYER
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "fast": {"base_threshold": 0.24, "warp_threshold": 0.12, "min_threshold": 0.04},
        "balanced": {},
        "quality": {
            "base_threshold": 0.015,
            "warp_threshold": 0.0075,
            "min_threshold": 0.0025,
            "warmup": 4,
        },
    }

    base_threshold: float = 0.12
    warp_threshold: float = 0.06
    min_threshold: float = 0.02
    motion_scale: float = 3.0
    saliency_power: float = 1.0
    metric: Literal["cosine", "l2"] = "cosine"
    warmup: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("base_threshold", "min_threshold"):
            require(getattr(self, field) > 0, field, getattr(self, field), "above 0")
        for field in ("motion_scale", "saliency_power"):
            require(getattr(self, field) >= 0, field, getattr(self, field), "0 or more")
        allowed = f"in 0 to base_threshold, {self.base_threshold}"
        fine = 0 <= self.warp_threshold <= self.base_threshold
        require(fine, "warp_threshold", self.warp_threshold, allowed)
        require(self.metric in ("cosine", "l2"), "metric", self.metric, "cosine or l2")
        require(self.probe_depth == 0, "probe_depth", self.probe_depth, "0")

    def measure(self, state: BranchState, features: Features) -> Measured:
        """Drift's two sums, and the input's change and magnitude."""
        assert state.latest is not None
        kept = state.latest.input
        assert kept is not None
        weights = token_saliency(kept) ** self.saliency_power
        if self.metric == "cosine":
            change, unit = token_cosine(features.input, kept), weights
        else:
            change, square = token_l2(features.input, kept)
            unit = weights * square
        columns = ((weights * change).sum(1), unit.sum(1), *l1_sums(features.input, kept))
        return Measured(columns)

    def decide(self, state: BranchState, step: Step, reading: Reading) -> Decision:
        """By the sample nearest to (or furthest above) its threshold."""
        rows = [_Sums(*row) for row in reading.sums]
        pairs = [(self._drift(row), self.threshold(_motion(row), _fraction(step))) for row in rows]
        nearness = [drift / threshold for drift, threshold in pairs]
        drift, threshold = pairs[nearness.index(furthest(nearness))]
        if not all(near < 1 for near in nearness):
            return Decision(Action.RECOMPUTE, "drift", drift, threshold)
        if all(near < self.warp_threshold / self.base_threshold for near in nearness):
            return Decision(Action.REUSE, "drift", drift, threshold)
        return Decision(Action.WARP, "drift", drift, threshold, (Operator.SPATIAL,))

    def approximate(
        self, state: BranchState, features: Features, reading: Reading, decision: Decision
    ) -> Tensor:
        """The residual, moved where the decision says so."""
        from warpcache_ray.core.motion import blend_along, match_blocks

        latest, grid = state.latest, features.grid
        assert latest is not None
        assert latest.input is not None
        if decision.action is Action.REUSE:
            return latest.residual
        field = match_blocks(latest.input, features.input, grid)
        return blend_along(latest.residual, field, grid).tokens

    def remember(self, step: Step, features: Features, residual: Tensor) -> Snapshot:
        """Input and residual."""
        return Snapshot(step, residual, features.input)

    def threshold(self, motion: float, fraction: float | None = None) -> float:
        """For motion in [0, 1], at this fraction of the run."""
        still = motion_exponential(self.base_threshold, self.motion_scale, motion)
        return max(self.min_threshold, still) * phase_multiplier(fraction)

    def _drift(self, sums: _Sums) -> float:
        drift = ratio(sums.change, sums.weight)
        return drift if self.metric == "cosine" else math.sqrt(drift)


def _motion(sums: _Sums) -> float:
    return min(ratio(sums.motion, sums.extent), 1.0)


def _fraction(step: Step) -> float | None:
    return step.index / step.total if step.total else None
