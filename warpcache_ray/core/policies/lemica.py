"""LeMiCa (arXiv 2511.00090, its lexicographic minimax path): a fixed schedule of steps to compute, reuse between.

`tuning.fits.minimax_schedule` finds the schedule in calibration runs. It belongs to a model and its sampler, so there
is no default: an empty one leaves nothing out.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from warpcache_ray.core.policy import Policy, Reading, require
from warpcache_ray.core.types import Action, BranchState, Decision, Site, Step


@dataclass(frozen=True, kw_only=True)
class LeMiCa(Policy):
    """Computes the steps in `schedule`, found on a run of `schedule_steps`; in a run of another length (if both are
    known) those nearest to them. `warmup` and `cooldown` compute more, if they are asked to."""

    name: ClassVar[str] = "lemica"
    site: ClassVar[Site] = Site.OUTPUT

    schedule: tuple[int, ...] = ()
    schedule_steps: int | None = None
    cooldown: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        rising = all(a < b for a, b in pairwise(self.schedule))
        fine = rising and all(index >= 0 for index in self.schedule)
        require(fine, "schedule", self.schedule, "step indices from 0, each above the one before")
        last = max(self.schedule, default=0)
        fine = self.schedule_steps is None or self.schedule_steps > last
        require(fine, "schedule_steps", self.schedule_steps, f"above the schedule's last, {last}")

    def decide(self, state: BranchState, step: Step, reading: Reading) -> Decision:
        """By the schedule."""
        computed = not self.schedule or step.index in self._steps(step.total)
        return Decision(Action.RECOMPUTE if computed else Action.REUSE, "schedule")

    def _steps(self, total: int | None) -> set[int]:
        if total is None or self.schedule_steps in (None, 1, total):
            return set(self.schedule)
        assert self.schedule_steps is not None
        scale = (total - 1) / (self.schedule_steps - 1)
        return {round(index * scale) for index in self.schedule}
