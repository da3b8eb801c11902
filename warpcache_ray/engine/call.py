"""A denoiser call under way, and what every site does with it: let the policy decide, then commit the outcome."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from warpcache_ray.core.policy import Measured, Policy, Reading
from warpcache_ray.core.types import BranchState, Decision, Features, Grid, Step, Where
from warpcache_ray.engine.ranks import Ranks
from warpcache_ray.engine.session import Session, SessionStore


@dataclass(frozen=True, slots=True)
class Call:
    """One denoiser call: whose it is, which one, and on what grid."""

    session: Session
    where: Where
    step: Step
    grid: Grid

    @property
    def policy(self) -> Policy:
        """The session's policy."""
        return self.session.policy

    def layer(self, index: int) -> Call:
        """The same call at one block."""
        return replace(self, where=self.where._replace(layer=index))

    def state(self, like: Tensor) -> BranchState:
        """The branch's state."""
        return self.session.informed(self.where, like, self.step)

    def commit(
        self, store: SessionStore, state: BranchState, decision: Decision, run: int, skipped: int
    ) -> None:
        """Notes the decision, `run` and `skipped` blocks, then replaces the branch's state."""
        self.session.stats.add(self.step, self.where, decision, run, skipped)
        store.commit(self.session, self.where, state)


def deliberate(
    policy: Policy, state: BranchState, features: Features, step: Step, ranks: Ranks
) -> tuple[Decision, Reading]:
    """The decision that nothing forces, and the numbers that the ranks agreed on for it."""
    reading = _read(policy.measure(state, features), ranks)
    return policy.decide(state, step, reading), reading


def _read(measured: Measured | None, ranks: Ranks) -> Reading:
    if measured is None:
        return Reading()
    width = len(measured.sums)
    # One collective, added up in the order of the ranks: the same bits on each.
    shares = ranks.gather(torch.stack((*measured.sums, *measured.extremes), 1))
    table = torch.cat((shares[..., :width].sum(0), shares[..., width:].amax(0)), 1)
    # One transfer: the only time the decision waits for the device.
    rows = table.tolist()
    return Reading(
        tuple(tuple(row[:width]) for row in rows), tuple(tuple(row[width:]) for row in rows)
    )
