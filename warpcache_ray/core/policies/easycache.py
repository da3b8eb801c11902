"""EasyCache (arXiv 2507.02860): the output's change foretold from the input's, on raw latents.

k = Σ|v₁ - v₂| / Σ|x₁ - x₂| of the last two computed steps foretells this step's relative change, k Σ|x - x_prev| /
Σ|v₁|. It is gathered over the steps since the last recompute; below τ the step is skipped. The branch called first
decides, the others of the step follow it. A skip gives x + (v₁ - x₁), as published; that adds the latent's change to a
velocity, so `space: velocity` gives v₁ instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from warpcache_ray.core.drift import furthest, gathered, l1_sum, ratio
from warpcache_ray.core.policy import Measured, Policy, Reading, require
from warpcache_ray.core.types import (
    Action,
    BranchState,
    Decision,
    Features,
    Site,
    Snapshot,
    Step,
    Trail,
)

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class EasyCache(Policy):
    """`threshold` is τ; defaults are the paper's for Wan 2.1."""

    name: ClassVar[str] = "easycache"
    window: ClassVar[int] = 2
    site: ClassVar[Site] = Site.OUTPUT

    threshold: float = 0.05
    space: Literal["residual", "velocity"] = "residual"
    warmup: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.threshold > 0, "threshold", self.threshold, "above 0")
        spaces = ("residual", "velocity")
        require(self.space in spaces, "space", self.space, f"one of {', '.join(spaces)}")

    def measure(self, state: BranchState, features: Features) -> Measured | None:
        """Σ|x - x_prev|, Σ|v₁|, Σ|v₁ - v₂| and Σ|x₁ - x₂|; nothing where a peer or the lack of a second
        recompute decides."""
        latest, previous, trail = state.latest, state.previous, state.trail
        if state.peer is not None or previous is None or trail is None:
            return None
        assert latest is not None
        assert latest.input is not None
        assert previous.input is not None
        assert trail.reference is not None
        return Measured(
            (
                l1_sum(features.input - trail.reference),
                l1_sum(latest.residual),
                l1_sum(latest.residual - previous.residual),
                l1_sum(latest.input - previous.input),
            )
        )

    def decide(self, state: BranchState, step: Step, reading: Reading) -> Decision:
        """As the peer did, or by the sample that is foretold to have changed most."""
        if state.peer is not None:
            return Decision(state.peer.decision.action, "peer")
        if not reading.sums:
            return Decision(Action.RECOMPUTE, "no rate")
        drifts = gathered(state.trail, _changes(reading))
        skip = all(drift < self.threshold for drift in drifts)
        action = Action.REUSE if skip else Action.RECOMPUTE
        return Decision(action, "drift", furthest(drifts), self.threshold)

    def approximate(
        self, state: BranchState, features: Features, reading: Reading, decision: Decision
    ) -> Tensor:
        """x + (v₁ - x₁), or v₁."""
        latest = state.latest
        assert latest is not None
        assert latest.input is not None
        if self.space == "velocity":
            return latest.residual
        return features.input + (latest.residual - latest.input)

    def remember(self, step: Step, features: Features, residual: Tensor) -> Snapshot:
        """Input and output."""
        return Snapshot(step, residual, features.input)

    def trail(
        self,
        state: BranchState,
        step: Step,
        features: Features,
        reading: Reading,
        decision: Decision,
    ) -> Trail:
        """This step's input, and the change foretold so far if it is skipped."""
        drift = gathered(state.trail, _changes(reading)) if decision.skips else ()
        return Trail(drift, features.input)


def _changes(reading: Reading) -> list[float]:
    return [
        ratio(output_change, input_change) * ratio(moved, magnitude)
        for moved, magnitude, output_change, input_change in reading.sums
    ]
