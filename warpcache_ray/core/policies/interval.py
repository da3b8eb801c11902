"""Recompute every n-th step, reuse the residual between: the simplest schedule, for comparison."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from warpcache_ray.core.policy import Policy, Reading, require
from warpcache_ray.core.types import Action, BranchState, Decision, Step


@dataclass(frozen=True, kw_only=True)
class Interval(Policy):
    """Skips `every` - 1 steps after each recompute."""

    name: ClassVar[str] = "interval"

    every: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.every >= 1, "every", self.every, "1 or more")

    def decide(self, state: BranchState, step: Step, reading: Reading) -> Decision:
        """By the number of skips since the last recompute."""
        if state.skips + 1 >= self.every:
            return Decision(Action.RECOMPUTE, "interval")
        return Decision(Action.REUSE, "interval")
