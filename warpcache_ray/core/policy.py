"""What a policy is: frozen parameters, and the functions that decide and approximate."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

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

# Policies are named and checked in processes that never compute (ingress, command line), so torch stays out of
# this package's imports.
if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Measured:
    """Numbers of this rank's tokens, each (batch,): `sums` are to be added over the ranks, of `extremes` the
    largest counts."""

    sums: tuple[Tensor, ...]
    extremes: tuple[Tensor, ...] = ()


@dataclass(frozen=True, slots=True)
class Reading:
    """`Measured` once the ranks agree, as numbers: one row per sample."""

    sums: tuple[tuple[float, ...], ...] = ()
    extremes: tuple[tuple[float, ...], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Policy:
    """Base of all policies, and the parameters they share. `presets` are parameters under a name.

    `warmup` and `cooldown` steps at the two ends always recompute, as do those outside `steps` (first, end); at
    most `max_skips` skips stand in a row. Only the blocks in `blocks` (first, end) are skipped, and of these the
    first `probe_depth` run at every step.
    """

    name: ClassVar[str]
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    warmup: int = 1
    cooldown: int = 1
    max_skips: int | None = None
    probe_depth: int = 0
    blocks: tuple[int, int | None] = (0, None)
    steps: tuple[int, int | None] = (0, None)

    def __post_init__(self) -> None:
        for field in ("warmup", "cooldown", "probe_depth"):
            require(getattr(self, field) >= 0, field, getattr(self, field), "0 or more")
        require(
            self.max_skips is None or self.max_skips >= 1, "max_skips", self.max_skips, "1 or more"
        )
        for field in ("blocks", "steps"):
            first, end = getattr(self, field)
            fine = first >= 0 and (end is None or end > first)
            require(fine, field, [first, end], "[first, end] with 0 <= first < end, or end null")

    @property
    def window(self) -> int:
        """Snapshots to keep, 0 to 3; a constant, or what the parameters ask for."""
        return 1

    @property
    def site(self) -> Site:
        """Where it intervenes; a constant, or a parameter."""
        return Site.BLOCKS

    def block_range(self, count: int) -> tuple[int, int, int]:
        """(first, probe's end, end) of the blocks that this policy cares for, in a stack of `count`.

        Raises:
            ValueError: the probe leaves nothing to skip.
        """
        first, end = self.blocks
        end = count if end is None else min(end, count)
        probe_end = first + self.probe_depth
        if self.window:
            allowed = f"ranges that leave a block to skip; blocks {[first, end]} of {count}"
            require(probe_end < end, "probe_depth", self.probe_depth, allowed)
        return min(first, end), min(probe_end, end), end

    def misfit(self, features: Features) -> str | None:
        """Site `output`: why these features have to be computed in full, if they do."""
        return None

    def measure(self, state: BranchState, features: Features) -> Measured | None:
        """What the decision needs to know of the features; None if nothing."""
        return None

    def decide(self, state: BranchState, step: Step, reading: Reading) -> Decision:
        """The decision for a step that nothing forces; `state.latest` is there."""
        raise NotImplementedError

    def approximate(
        self, state: BranchState, features: Features, reading: Reading, decision: Decision
    ) -> Tensor:
        """What a skipped step uses for the residual, of its shape."""
        assert state.latest is not None
        return state.latest.residual

    def remember(self, step: Step, features: Features, residual: Tensor) -> Snapshot:
        """What to keep of a recompute."""
        return Snapshot(step, residual)

    def note(self, state: BranchState, step: Step, residual: Tensor) -> Any:
        """The memo after a recompute that gave `residual`; `state` is the one before it."""
        return state.memo

    def deliver(self, state: BranchState, step: Step, residual: Tensor) -> Tensor:
        """Site `output`: what the solver is given for a recompute; `state` has the memo after it."""
        return residual

    def trail(
        self,
        state: BranchState,
        step: Step,
        features: Features,
        reading: Reading,
        decision: Decision,
    ) -> Trail | None:
        """What the branch takes on to its next step, whatever was decided at this one; None if nothing."""
        return None

    def forced(self, state: BranchState, step: Step) -> Decision | None:
        """The recompute that this step needs whatever the features are, or None."""
        reason = self._forced_reason(state, step)
        return Decision(Action.RECOMPUTE, reason) if reason else None

    def save(self, path: str | Path) -> None:
        """Writes name and parameters as JSON; `load_policy` reads them back."""
        described = {"name": self.name, **asdict(self)}
        Path(path).write_text(json.dumps(described, separators=(",", ":")) + "\n")

    def _forced_reason(self, state: BranchState, step: Step) -> str | None:
        first, end = self.steps
        if step.index < self.warmup:
            return "warmup"
        if state.latest is None:
            return "no state"
        if step.total is not None and step.index >= step.total - self.cooldown:
            return "cooldown"
        if step.index < first or (end is not None and step.index >= end):
            return "outside steps"
        if self.max_skips is not None and state.skips >= self.max_skips:
            return "max_skips"
        return None


def require(fine: bool, field: str, value: object, allowed: str) -> None:
    """ValueError that names field, value and what is allowed, unless `fine`."""
    if not fine:
        raise ValueError(f"{field}: {value!r} is not allowed; it must be {allowed}")


def in_retention(step: Step, share: float) -> bool:
    """True in the first `share` of the run, whose length must be known."""
    return step.total is not None and step.index < int(share * step.total)
