"""Features, states and readings for the tests of policies."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from warpcache_ray.core.policy import Measured, Policy, Reading
from warpcache_ray.core.types import BranchState, Features, Grid, Step

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
        snapshot = policy.remember(Step(index), features, residual)
        state = state.after_recompute(snapshot, policy.window)
    return state


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
def make_reading() -> Callable[..., Reading]:
    """`make_reading(measured)`: what one rank alone reads."""
    return _reading
