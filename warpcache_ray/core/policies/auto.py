"""`auto`: computes where the calibrated Gram matrix says that it pays most, foretells between, corrects after.

A computed step also corrects the gap before it: once V_e is known, the gap's sum is an interpolation instead of an
extrapolation, three to five times as exact, and the difference is handed to the solver spread over the next gap
(predictor and corrector of a linear multistep method, without a second evaluation). See `core.schedule`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from warpcache_ray.core.gram import GUIDED, Gram, prior
from warpcache_ray.core.policy import Policy, Reading, require
from warpcache_ray.core.schedule import HORIZON, Plan, plan
from warpcache_ray.core.types import (
    Action,
    BranchState,
    Course,
    Decision,
    Features,
    Operator,
    Site,
    Snapshot,
    Step,
)

if TYPE_CHECKING:
    from torch import Tensor

Nodes = tuple[int | None, int | None, int]
"""The computed steps pp, p, s, the latest last."""

FEWEST_STEPS = 5
"""Shorter runs are computed in full: distilled models leave nothing to foretell."""
DEFAULT_SHARE = 0.25
REBUILD = 2
"""Calls beyond `max_calls` for a run that has lost its states: two computed steps are what the others build on."""


class Mix(NamedTuple):
    """What to hand to the solver during a gap: weights of V_s, V_p, V_pp (the computed steps, the latest first), and of
    D_s, D_p."""

    outputs: tuple[float, float, float] = (1.0, 0.0, 0.0)
    differences: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Track:
    """Where a run stands after its latest computed step: which that is, which is next, how many there were, the
    expected error so far, and how much larger than expected the corrections were (sum of logs, count)."""

    plan: Plan
    step: int
    before: int | None
    next: int
    calls: int
    mix: Mix
    spent: float = 0.0
    surprise: tuple[float, int] = (0.0, 0)


@dataclass(frozen=True, kw_only=True)
class Auto(Policy):
    """With `max_calls`, at most so many steps are computed (in a run that loses its states `REBUILD` more); with
    `target_psnr`, as few as keep that quality; with neither, a quarter of them. No gap is longer than 16 steps, and
    runs of less than 5 steps are computed in full, as are runs under solvers that aren't linear.

    `gram` comes from calibration on `model` (its fingerprint) at `shape` (an output's channels, frames, rows, columns);
    without one, the toy world's stands in. Another shape is computed in full, another number of steps planned anew.
    `level` is the PSNR of an expected error of 1, `answer` the size of the model's Jacobian relative to the rule of
    `core.schedule`; both are calibrated too. `trust` is how much of an observed surprise is believed (0: none; target
    mode only).
    """

    name = "auto"

    max_calls: int | None = None
    target_psnr: float | None = None
    gram: Gram | None = None
    model: str | None = None
    shape: tuple[int, ...] | None = None
    answer: float = 1.0
    level: float = 18.0
    trust: float = 0.5
    warmup: int = 1
    cooldown: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.max_calls is None or self.max_calls >= 1, "max_calls", self.max_calls, "1 or more"
        )
        both = self.max_calls is not None and self.target_psnr is not None
        require(not both, "target_psnr", self.target_psnr, "left out where max_calls is given")
        fine = self.target_psnr is None or 0 < self.target_psnr <= 99
        require(fine, "target_psnr", self.target_psnr, "above 0 and at most 99 (dB)")
        require(self.answer >= 0, "answer", self.answer, "0 or more")
        require(0 <= self.trust <= 1, "trust", self.trust, "from 0 to 1")

    @property
    def site(self) -> Site:
        """Whole denoiser calls."""
        return Site.OUTPUT

    @property
    def window(self) -> int:
        """The two computed steps before the one at hand."""
        return 2

    def misfit(self, features: Features) -> str | None:
        """The calibrated shape differs."""
        same = self.shape is None or tuple(features.input.shape[1:]) == tuple(self.shape)
        return None if same else "calibrated for another shape"

    def decide(self, state: BranchState, step: Step, reading: Reading) -> Decision:
        """What isn't computed is foretold."""
        return Decision(Action.WARP, "schedule", operators=(Operator.FORECAST,))

    def _forced_reason(self, state: BranchState, step: Step) -> str | None:
        hindrance = obstacle(step.course)
        if hindrance is not None:
            return hindrance
        if state.peer is not None and not state.peer.decision.skips:
            return "as the branch before"
        reason = super()._forced_reason(state, step)
        if reason is not None:
            return reason
        if not isinstance(state.memo, Track):
            return "no state"
        return "schedule" if step.index >= state.memo.next else None

    def approximate(
        self, state: BranchState, features: Features, reading: Reading, decision: Decision
    ) -> Tensor:
        """What the latest computed step prepared."""
        assert state.latest is not None
        delivered = state.latest.delivered
        return state.latest.residual if delivered is None else delivered

    def note(self, state: BranchState, step: Step, residual: Tensor) -> Track | None:
        """The track after a computed step, made by the first branch and kept by the second."""
        if obstacle(step.course) is not None:
            return None
        track = state.memo if isinstance(state.memo, Track) else None
        if track is not None and track.step == step.index:
            return track
        if state.latest is None:
            track = None
        return self._onwards(track, state, step, residual)

    def deliver(self, state: BranchState, step: Step, residual: Tensor) -> Tensor:
        """The mean of the gap that begins, corrected by what is now known of the gap before."""
        track = state.memo
        if not isinstance(track, Track):
            return residual
        outputs = [residual, *(s.residual for s in state.snapshots)]
        mixed = weighted_sum(track.mix.outputs, outputs)
        guidance = step.course.guidance if step.course else None
        if state.peer is not None and guidance is not None and guidance > 1:
            # All that depends on cond - uncond goes into uncond, the first branch that knows it; the guided sum takes
            # 1 - guidance times what uncond is given.
            peers = [state.peer.residual, *(s.peer for s in state.snapshots)]
            pairs = zip(peers, outputs, strict=False)
            differences = [a.float() - b.float() for a, b in pairs if a is not None]
            mixed = mixed + weighted_sum(track.mix.differences, differences) / (1 - guidance)
        return mixed.to(residual.dtype)

    def remember(self, step: Step, features: Features, residual: Tensor) -> Snapshot:
        """The output alone."""
        return Snapshot(step, residual)

    def _onwards(
        self, track: Track | None, state: BranchState, step: Step, residual: Tensor
    ) -> Track:
        assert step.course is not None
        s = step.index
        if track is None:
            # Only a branch of its own can be given what depends on cond - uncond.
            apart = step.branch in GUIDED
            course = step.course if apart else replace(step.course, guidance=None)
            chart = plan(self.gram or prior(), course, self.answer)
            taken_over = step.course.switch == s
            calls, spent = self._before(chart, s, 0 if taken_over else REBUILD)
            track = Track(chart, s, None, s, calls, Mix(), spent)
            p = pp = None
        else:
            p, pp = track.step, track.before
        met = p is not None and track.next == s
        chart, spent, surprise = track.plan, track.spent, track.surprise
        if met:
            assert p is not None
            spent += chart.error(pp, p, s)
            if self.target_psnr is not None:
                surprise = _surprise(chart, state, residual, surprise, (pp, p, s))
        moved = replace(track, calls=track.calls + 1, spent=spent, surprise=surprise)
        e = self._next(moved, p, s)
        switch = step.course.switch
        if switch is not None and s < switch:
            # What the second transformer gives is another function: no gap reaches into it.
            e = min(e, switch)
        mix = _mix(chart, (pp, p, s), e, met)
        return replace(moved, step=s, before=p, next=e, mix=mix)

    def _before(self, chart: Plan, s: int, rebuild: int) -> tuple[int, float]:
        """Calls and expected error of a run that goes on at s without its states, of which `rebuild` calls are given
        back."""
        if s == 0:
            return 0, 0.0
        calls = self.budget(chart)
        if self.target_psnr is not None:
            fine = (b for b in range(chart.steps) if chart.rest(None, 0, b) <= self._allowed)
            calls = 1 + next(fine, chart.steps - 1)
        steps = [step for step in chart.schedule(calls) if step <= s]
        gaps = zip([None, *steps], steps, steps[1:], strict=False)
        return max(0, sum(step < s for step in steps) - rebuild), sum(chart.error(*g) for g in gaps)

    def budget(self, chart: Plan, calls: int | None = None) -> int:
        """How many calls a run may make: `calls`, or what the policy says, but enough to leave no gap too long."""
        n = chart.steps
        asked = calls or self.max_calls or math.ceil(DEFAULT_SHARE * n)
        return min(n, max(asked, math.ceil(n / HORIZON)))

    def _next(self, track: Track, p: int | None, s: int) -> int:
        n = track.plan.steps
        first, end = self.steps
        # From here on every step is computed.
        stop = min(n - self.cooldown, n if end is None else end)
        if s + 1 < max(self.warmup, first) or s + 1 >= stop:
            return s + 1
        if self.target_psnr is not None:
            left = self._needed(track, p, s)
        else:
            left = self.budget(track.plan) - track.calls - (n - stop)
            if left >= stop - s - 1:
                # Enough for all, whatever the plan believes to be free.
                return s + 1
        left = max(left, math.ceil((n - s) / HORIZON) - 1)
        e = min(track.plan.turn(p, s, min(left, n - 1)), stop)
        return e if self.max_skips is None else min(e, s + 1 + self.max_skips)

    @property
    def _allowed(self) -> float:
        """The square error that the target leaves."""
        assert self.target_psnr is not None
        return float(10 ** ((self.level - self.target_psnr) / 10))

    def _needed(self, track: Track, p: int | None, s: int) -> int:
        """The fewest further calls that keep the target, if what surprised goes on to."""
        logs, count = track.surprise
        growth = math.exp(self.trust * logs / count) if count else 1.0
        allowed = self._allowed / growth - track.spent
        n = track.plan.steps
        fine = (b for b in range(n - s) if track.plan.rest(p, s, b) <= allowed)
        return next(fine, n - s - 1)


def weighted_sum(weights: Iterable[float], tensors: Iterable[Tensor]) -> Tensor:
    """Sum of weight · tensor in float32, as long as there are both."""
    return sum(  # type: ignore[return-value]
        w * t.float() for w, t in zip(weights, tensors, strict=False)
    )


def _mix(chart: Plan, nodes: Nodes, e: int, met: bool) -> Mix:
    """Weights of the gap from s to e: its forecast, and what the one before owes."""
    _, p, s = nodes
    span = chart.span(s, e)
    told = chart.forecast(p, s, e)
    owed = _owed(chart, nodes) if met else Mix((0.0, 0.0, 0.0))
    latest, previous, older = owed.outputs
    difference, before = owed.differences
    return Mix(
        (
            1 + (latest + told.level - told.before) / span,
            (previous + told.before) / span,
            older / span,
        ),
        ((difference + told.difference) / span, before / span),
    )


def _owed(chart: Plan, nodes: Nodes) -> Mix:
    """Correction less forecast of the gap from p to s."""
    pp, p, s = nodes
    assert p is not None
    told, known = chart.forecast(pp, p, s), chart.correction(pp, p, s)
    older = known.before - told.before
    return Mix(
        (known.after, -known.after - older - told.level, older),
        (known.difference_after, known.difference - told.difference),
    )


def _surprise(
    chart: Plan, state: BranchState, residual: Tensor, before: tuple[float, int], nodes: Nodes
) -> tuple[float, int]:
    """Log of the correction's size over the expected one, added up: the cond branch's, which is known first."""
    weights = _owed(chart, nodes).outputs
    known = [
        (node, w) for node, w in zip(reversed(nodes), weights, strict=True) if node is not None
    ]
    expected = sum(a * b * float(chart.cond[i, j]) for i, a in known for j, b in known)
    outputs = [residual, *(s.residual for s in state.snapshots)]
    observed = float(weighted_sum(weights, outputs).square().mean())
    if not (expected > 0 and 0 < observed < math.inf):
        return before
    return before[0] + math.log(observed / expected), before[1] + 1


def obstacle(course: Course | None) -> str | None:
    """Why a run can't be planned, if it can't."""
    if course is None or course.weights is None:
        return "unknown solver"
    if course.sigmas[0] > 1 or any(a <= b for a, b in pairwise(course.sigmas)):
        return "unknown solver"
    return "few steps" if len(course.sigmas) <= FEWEST_STEPS else None
