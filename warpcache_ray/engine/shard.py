"""A rank's share of a video's tokens, and how a policy works on shares as it would on the whole.

Sums are taken of tokens, never of the padding after the last one, and added up over the ranks; so decisions are those
of one rank. What moves features over the grid needs all of them: each rank gathers the whole, moves it, keeps its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor
from torch.nn.functional import pad

from warpcache_ray.core.policy import Policy, Reading
from warpcache_ray.core.types import (
    BranchState,
    Decision,
    Features,
    Grid,
    Operator,
    Snapshot,
    Trail,
)
from warpcache_ray.engine.ranks import Ranks


@dataclass(frozen=True, slots=True)
class Shard:
    """`held` tokens in a row of the grid's, each rank as many; those beyond the grid are padding."""

    ranks: Ranks
    grid: Grid
    held: int

    @property
    def real(self) -> int:
        """How many are no padding."""
        if self.ranks.size == 1:
            return self.held
        return min(max(self.grid.tokens - self.ranks.index * self.held, 0), self.held)

    def counted(self, state: BranchState, features: Features) -> tuple[BranchState, Features]:
        """Both without padding."""
        if self.real == self.held:
            return state, features
        return _mapped(state, features, lambda tokens: tokens[:, : self.real])

    def approximate(
        self,
        policy: Policy,
        state: BranchState,
        features: Features,
        reading: Reading,
        decision: Decision,
    ) -> Tensor:
        """What a skipped step uses for the residual of this share."""
        if self.ranks.size == 1 or Operator.SPATIAL not in decision.operators:
            return policy.approximate(state, features, reading, decision)
        whole = _mapped(state, features, self._whole)
        return self._mine(policy.approximate(*whole, reading, decision))

    def _whole(self, tokens: Tensor) -> Tensor:
        return self.ranks.whole(tokens)[:, : self.grid.tokens]

    def _mine(self, tokens: Tensor) -> Tensor:
        padding = self.ranks.size * self.held - self.grid.tokens
        first = self.ranks.index * self.held
        return pad(tokens, (0, 0, 0, padding))[:, first : first + self.held]


def _mapped(
    state: BranchState, features: Features, change: Callable[[Tensor], Tensor]
) -> tuple[BranchState, Features]:
    """Both, with all that has a row per token changed."""

    def of(tokens: Tensor | None) -> Tensor | None:
        return None if tokens is None else change(tokens)

    def kept(snapshot: Snapshot | None) -> Snapshot | None:
        if snapshot is None:
            return None
        return replace(
            snapshot,
            residual=change(snapshot.residual),
            input=of(snapshot.input),
            probe=of(snapshot.probe),
            probe_residual=of(snapshot.probe_residual),
        )

    trail = state.trail and Trail(state.trail.drift, of(state.trail.reference))
    latest, previous, older = map(kept, (state.latest, state.previous, state.older))
    state = replace(state, latest=latest, previous=previous, older=older, trail=trail)
    return state, Features(change(features.input), change(features.probe), features.grid)
