"""TeaCache (arXiv 2411.19108): the input's relative change, rescaled by a polynomial and gathered over steps.

Skips while Σ poly(Σ|x_t - x_{t-1}| / Σ|x_{t-1}|) since the last recompute is below the threshold.

- x is the block stack's input; the paper modulates it with the time embedding first (for Wan it takes that embedding
  alone), which a model-agnostic policy can't see. So the paper's coefficients don't fit: fit them with
  `tuning.fits.change_polynomial`; the default is the change itself.
- a batch recomputes if any of its samples must.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from warpcache_ray.core.drift import furthest, gathered, l1_sums, ratio
from warpcache_ray.core.policy import Measured, Policy, Reading, require
from warpcache_ray.core.types import Action, BranchState, Decision, Features, Step, Trail


@dataclass(frozen=True, kw_only=True)
class TeaCache(Policy):
    """`coefficients` of the fourth-degree polynomial, the highest power first."""

    name: ClassVar[str] = "teacache"

    threshold: float = 0.1
    coefficients: tuple[float, ...] = (0.0, 0.0, 0.0, 1.0, 0.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.threshold > 0, "threshold", self.threshold, "above 0")
        five = len(self.coefficients) == 5
        require(five, "coefficients", self.coefficients, "five numbers, the highest power's first")

    def measure(self, state: BranchState, features: Features) -> Measured:
        """Change and magnitude of the input since the step before."""
        assert state.trail is not None
        assert state.trail.reference is not None
        return Measured(l1_sums(features.input, state.trail.reference))

    def decide(self, state: BranchState, step: Step, reading: Reading) -> Decision:
        """By the sample that gathered most."""
        drifts = self._gathered(state, reading)
        skip = all(drift < self.threshold for drift in drifts)
        action = Action.REUSE if skip else Action.RECOMPUTE
        return Decision(action, "drift", furthest(drifts), self.threshold)

    def trail(
        self,
        state: BranchState,
        step: Step,
        features: Features,
        reading: Reading,
        decision: Decision,
    ) -> Trail:
        """This step's input, and the drift so far if it is skipped."""
        return Trail(self._gathered(state, reading) if decision.skips else (), features.input)

    def _gathered(self, state: BranchState, reading: Reading) -> tuple[float, ...]:
        return gathered(state.trail, [self._rescaled(ratio(*sums)) for sums in reading.sums])

    def _rescaled(self, change: float) -> float:
        value = 0.0
        for coefficient in self.coefficients:
            value = value * change + coefficient
        return value
