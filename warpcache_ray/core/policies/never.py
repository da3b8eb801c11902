"""Recompute always: the reference that every other policy is compared with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from warpcache_ray.core.policy import Policy, Reading
from warpcache_ray.core.types import Action, BranchState, Decision, Step


@dataclass(frozen=True, kw_only=True)
class Never(Policy):
    """Never skips, keeps nothing; output is bit-identical to the plain model."""

    name: ClassVar[str] = "never"
    window: ClassVar[int] = 0

    def decide(self, state: BranchState, step: Step, reading: Reading) -> Decision:
        """RECOMPUTE."""
        return Decision(Action.RECOMPUTE, "never")

    def _forced_reason(self, state: BranchState, step: Step) -> str | None:
        return "never"
