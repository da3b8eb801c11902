"""A rank's share of the tokens, seen from one process."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from warpcache_ray.core.policies.worldcache import WorldCache
from warpcache_ray.core.policy import Reading
from warpcache_ray.core.types import (
    Action,
    BranchState,
    Decision,
    Features,
    Grid,
    Operator,
    Snapshot,
    Step,
    Trail,
)
from warpcache_ray.engine.ranks import OneRank
from warpcache_ray.engine.shard import Shard

GRID = Grid(2, 3, 5)
HELD = 8
"""Tokens of each of four ranks; two of the last one's are padding."""
SPATIAL = Decision(Action.WARP, "drift", operators=(Operator.SPATIAL,))


@dataclass
class Fourth(OneRank):
    """One of four ranks; the others' tokens are told in the order in which they are asked for."""

    index: int = 0
    size: int = 4
    wholes: tuple[Tensor, ...] = ()

    def whole(self, tokens: Tensor) -> Tensor:
        """The whole whose share was given."""
        shares = (_cut(whole)[self.index] for whole in self.wholes)
        pairs = zip(self.wholes, shares, strict=True)
        return _padded(next(whole for whole, share in pairs if torch.equal(share, tokens)))


def _padded(tokens: Tensor) -> Tensor:
    return torch.cat((tokens, torch.full((1, 2, 4), 77.0)), 1)


def _cut(tokens: Tensor) -> tuple[Tensor, ...]:
    return _padded(tokens).split(HELD, 1)


@pytest.mark.parametrize(("index", "real"), [(0, 8), (2, 8), (3, 6)])
def test_padding_is_not_counted(index: int, real: int) -> None:
    """All that has a row per token loses those beyond the grid; the text's rows are no tokens."""
    tokens, text = torch.randn(1, HELD, 4), torch.randn(1, HELD, 4)
    snapshot = Snapshot(Step(0), tokens, tokens, None, tokens, beside=(text,))
    state = BranchState(snapshot, trail=Trail((0.1,), tokens))
    shard = Shard(Fourth(index), GRID, HELD)
    counted, features = shard.counted(state, Features(tokens, tokens, GRID))
    assert counted.latest is not None
    assert counted.trail is not None
    kept = (counted.latest.residual, counted.latest.input, counted.latest.probe_residual)
    for rows in (*kept, counted.trail.reference, features.input, features.probe):
        assert rows is not None
        assert torch.equal(rows, tokens[:, :real])
    assert counted.latest.beside == (text,)
    assert counted.latest.probe is None
    assert counted.trail.drift == (0.1,)


def test_one_rank_counts_what_it_holds() -> None:
    """Also where a model has more tokens than its grid."""
    assert Shard(OneRank(), GRID, 40).real == 40


def test_what_moves_over_the_grid_moves_the_whole() -> None:
    """The shares put together are what one rank makes; the padding stays out of it."""
    generator = torch.Generator().manual_seed(0)
    kept, probe, now, residual = torch.randn(4, 1, GRID.tokens, 4, generator=generator)
    policy = WorldCache(warp=True)

    def moved(index: int | None) -> Tensor:
        def mine(tokens: Tensor) -> Tensor:
            return tokens if index is None else _cut(tokens)[index]

        wholes = (kept, probe, now, residual)
        ranks = OneRank() if index is None else Fourth(index, wholes=wholes)
        state = BranchState(Snapshot(Step(0), mine(residual), mine(kept), mine(probe)))
        features = Features(mine(now), mine(now), GRID)
        shard = Shard(ranks, GRID, features.input.shape[1])
        return shard.approximate(policy, state, features, Reading(), SPATIAL)

    expected = moved(None)
    shares = torch.cat([moved(index) for index in range(4)], 1)
    assert not torch.equal(expected, residual)
    assert torch.equal(shares[:, : GRID.tokens], expected)
    assert not shares[:, GRID.tokens :].any()
