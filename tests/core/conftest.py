"""Features, states and readings for the tests of policies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from warpcache_ray.core.policy import Measured, Policy, Reading
from warpcache_ray.core.types import (
    Action,
    BranchState,
    Course,
    Decision,
    Features,
    Grid,
    Outcome,
    Step,
)

GRID = Grid(2, 4, 4)
CHANNELS = 6


def _features(seed: int, batch: int = 1) -> Features:
    generator = torch.Generator().manual_seed(seed)
    shape = (2, batch, GRID.tokens, CHANNELS)
    hidden, added = torch.randn(shape, generator=generator).unbind()
    return Features(hidden, hidden + added, GRID)


def _state(policy: Policy, *moments: tuple[Features, Tensor], first: int = 3) -> BranchState:
    state = BranchState()
    for index, (features, residual) in enumerate(moments, first):
        state = _recomputed(policy, state, Step(index), features, residual)
    return state


def _recomputed(
    policy: Policy, state: BranchState, step: Step, features: Features, residual: Tensor
) -> BranchState:
    trail = policy.trail(state, step, features, Reading(), Decision(Action.RECOMPUTE, "test"))
    snapshot = policy.remember(step, features, residual)
    return state.after_recompute(snapshot, policy.window, trail)


def _run(
    policy: Policy,
    moments: Sequence[tuple[Features, Tensor]],
    total: int | None = None,
    peer: Tensor | None = None,
) -> list[tuple[Decision, Tensor]]:
    state, memo, outcomes = BranchState(), None, []
    total = total or len(moments)
    levels = tuple(1 - index / total for index in range(total + 1))
    course = Course(levels, None, (-1 / total,) * total)
    for index, (features, residual) in enumerate(moments):
        step = Step(index, total, levels[index], course=course)
        other = peer if peer is None else Outcome(step, Decision(Action.RECOMPUTE, "test"), peer)
        state = replace(state, peer=other, memo=memo)
        decision, reading = policy.forced(state, step), Reading()
        if decision is None:
            reading = _reading(policy.measure(state, features))
            decision = policy.decide(state, step, reading)
        if decision.skips:
            trail = policy.trail(state, step, features, reading, decision)
            outcomes.append((decision, policy.approximate(state, features, reading, decision)))
            state = state.after_skip(trail)
        else:
            memo = policy.note(state, step, residual)
            outcomes.append((decision, residual))
            state = _recomputed(policy, state, step, features, residual)
    return outcomes


def _reading(measured: Measured | None) -> Reading:
    if measured is None:
        return Reading()
    rows = tuple(zip(*(column.tolist() for column in measured.sums), strict=True))
    extremes = tuple(zip(*(column.tolist() for column in measured.extremes), strict=True))
    return Reading(rows, extremes or ((),) * len(rows))


@pytest.fixture
def make_features() -> Callable[..., Features]:
    """`make_features(seed, batch)`: random input and probe on a small grid."""
    return _features


@pytest.fixture
def make_state() -> Callable[..., BranchState]:
    """`make_state(policy, (features, residual), ...)`: recomputes at steps 3, 4, ..."""
    return _state


@pytest.fixture
def play() -> Callable[..., list[tuple[Decision, Tensor]]]:
    """`play(policy, [(features, residual), ...], total, peer)`: decision and outcome of each step of an Euler run, as
    one rank's engine makes it; `peer` is what the branch before gives in every step."""
    return _run


@pytest.fixture
def make_reading() -> Callable[..., Reading]:
    """`make_reading(measured)`: what one rank alone reads."""
    return _reading
