"""DiCache (arXiv 2508.17356): a shallow probe's change gathered over steps; residuals on the line of the last two.

Skips while Σ(Σ|p_t - p_{t-1}| / Σ|p_{t-1}|) since the last recompute stays within δ, with p the stream after the first
`probe_depth` blocks; a miss goes on from there. A skip adds r₂ + γ (r₁ - r₂), γ = Σ|p̃ - p̃₂| / Σ|p̃₁ - p̃₂| of probe
residuals, clipped; with one recompute only, r₁. A batch recomputes if any of its samples must; γ is each sample's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from warpcache_ray.core.blend import extrapolate
from warpcache_ray.core.drift import furthest, gathered, l1_sum, l1_sums, ratio
from warpcache_ray.core.policy import Measured, Policy, Reading, in_retention, require
from warpcache_ray.core.types import (
    Action,
    BranchState,
    Decision,
    Features,
    Operator,
    Snapshot,
    Step,
    Trail,
)

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class DiCache(Policy):
    """`threshold` is δ, `gains` clip γ; the first `retention` of the run is computed. Defaults are the paper's for
    HunyuanVideo."""

    name: ClassVar[str] = "dicache"
    window: ClassVar[int] = 2

    threshold: float = 0.1
    gains: tuple[float, float] = (1.0, 1.5)
    retention: float = 0.2
    probe_depth: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.threshold > 0, "threshold", self.threshold, "above 0")
        low, high = self.gains
        require(0 <= low <= high, "gains", self.gains, "[low, high] with 0 <= low <= high")
        require(0 <= self.retention <= 1, "retention", self.retention, "in 0 to 1")
        require(self.probe_depth >= 1, "probe_depth", self.probe_depth, "1 or more")

    def measure(self, state: BranchState, features: Features) -> Measured:
        """Change and magnitude of the probe since the step before, and the two sums of γ."""
        latest, previous, trail = state.latest, state.previous, state.trail
        assert latest is not None
        assert trail is not None
        assert trail.reference is not None
        sums = l1_sums(features.probe, trail.reference)
        if previous is None:
            return Measured(sums)
        assert latest.probe_residual is not None
        assert previous.probe_residual is not None
        change = l1_sum(features.probe_residual - previous.probe_residual)
        return Measured((*sums, change, l1_sum(latest.probe_residual - previous.probe_residual)))

    def decide(self, state: BranchState, step: Step, reading: Reading) -> Decision:
        """By the sample that gathered most."""
        if in_retention(step, self.retention):
            return Decision(Action.RECOMPUTE, "retention")
        drifts = _gathered(state, reading)
        if not all(drift <= self.threshold for drift in drifts):
            return Decision(Action.RECOMPUTE, "drift", furthest(drifts), self.threshold)
        operators = (Operator.BLEND,) if state.previous is not None else ()
        action = Action.WARP if operators else Action.REUSE
        return Decision(action, "drift", furthest(drifts), self.threshold, operators)

    def approximate(
        self, state: BranchState, features: Features, reading: Reading, decision: Decision
    ) -> Tensor:
        """The residual on the line through the last two."""
        latest, previous = state.latest, state.previous
        assert latest is not None
        if previous is None:
            return latest.residual
        gains = [self._gain(change, source) for _, _, change, source in reading.sums]
        return extrapolate(latest.residual, previous.residual, latest.residual.new_tensor(gains))

    def remember(self, step: Step, features: Features, residual: Tensor) -> Snapshot:
        """The residual and its probe's share."""
        return Snapshot(step, residual, probe_residual=features.probe_residual)

    def trail(
        self,
        state: BranchState,
        step: Step,
        features: Features,
        reading: Reading,
        decision: Decision,
    ) -> Trail:
        """This step's probe, and the drift so far if it is skipped."""
        return Trail(_gathered(state, reading) if decision.skips else (), features.probe)

    def _gain(self, change: float, source: float) -> float:
        low, high = self.gains
        return min(max(ratio(change, source), low), high) if source > 0 else 1.0


def _gathered(state: BranchState, reading: Reading) -> tuple[float, ...]:
    return gathered(state.trail, [ratio(row[0], row[1]) for row in reading.sums])
