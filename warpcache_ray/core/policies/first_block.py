"""First-block cache (ParaAttention's FBCache): reuse the stack's residual while the first block's is steady."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from warpcache_ray.core.drift import furthest, l1_sums, ratio
from warpcache_ray.core.policy import Measured, Policy, Reading, require
from warpcache_ray.core.types import Action, BranchState, Decision, Features, Snapshot, Step

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class FirstBlock(Policy):
    """drift = Σ|p - p_last| / Σ|p_last| of probe residuals p, against the last recompute; REUSE below `threshold`.

    A batch recomputes if any of its samples must.
    """

    name: ClassVar[str] = "first_block"

    threshold: float = 0.08
    probe_depth: int = 1
    warmup: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.threshold > 0, "threshold", self.threshold, "above 0")
        require(self.probe_depth >= 1, "probe_depth", self.probe_depth, "1 or more")

    def measure(self, state: BranchState, features: Features) -> Measured:
        """Difference and magnitude of the probe residual."""
        assert state.latest is not None
        assert state.latest.probe_residual is not None
        return Measured(l1_sums(features.probe_residual, state.latest.probe_residual))

    def decide(self, state: BranchState, step: Step, reading: Reading) -> Decision:
        """By the sample that drifted furthest; a drift that is no number counts as furthest."""
        drifts = [ratio(difference, magnitude) for difference, magnitude in reading.sums]
        skip = all(drift < self.threshold for drift in drifts)
        action = Action.REUSE if skip else Action.RECOMPUTE
        return Decision(action, "drift", furthest(drifts), self.threshold)

    def remember(self, step: Step, features: Features, residual: Tensor) -> Snapshot:
        """The residual and its probe's share."""
        return Snapshot(step, residual, probe_residual=features.probe_residual)
