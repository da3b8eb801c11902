"""The stand-in for a transformer's block stack: probe, decide, then recompute or approximate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from warpcache_ray.core.policy import Measured, Policy, Reading
from warpcache_ray.core.types import BranchState, Decision, Features, Grid, Step
from warpcache_ray.engine.ranks import Ranks
from warpcache_ray.engine.session import Session, SessionStore, Where


@dataclass(frozen=True, slots=True)
class Call:
    """One denoiser call under way: whose it is, which one, and on what grid."""

    session: Session
    where: Where
    step: Step
    grid: Grid


class CachedBlocks(nn.Module):
    """Runs the blocks as the transformer's own loop would, or leaves some out.

    `lengths` are those of the lists that the blocks came from. `call` is set before each forward. State is
    replaced once, last, so a forward that raises changes nothing.
    """

    call: Call | None

    def __init__(
        self,
        blocks: Sequence[nn.Module],
        lengths: tuple[int, ...],
        joint: bool,
        ranks: Ranks,
        store: SessionStore,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.lengths = lengths
        self.joint = joint
        self.ranks = ranks
        self.store = store
        self.call = None

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor | tuple[Tensor, Tensor]:
        """`hidden` (batch, tokens, channels) and what the blocks take beside it → what the last block gives."""
        assert self.call is not None, "a denoiser call that no hook announced"
        call, self.call = self.call, None
        stack = _Stack(self.blocks, self.joint, args, kwargs)
        policy, state = call.session.policy, call.session.state(call.where, hidden)
        first, end = _range(policy, len(self.blocks))
        probe_end = min(first + policy.probe_depth, end)

        stack.run(0, first, hidden)
        start = stack.hidden
        decision = policy.forced(state, call.step)
        stack.run(first, probe_end)
        features = Features(start, stack.hidden, call.grid)
        reading = Reading()
        if decision is None:
            reading = self._read(policy.measure(state, features))
            decision = policy.decide(state, call.step, reading)
        if decision.skips:
            stack.hidden = start + policy.approximate(state, features, reading, decision)
            state = state.after_skip()
        else:
            stack.run(probe_end, end)
            state = _recomputed(policy, state, call.step, features, stack.hidden)
        stack.run(end, len(self.blocks))

        self._commit(call, state, decision, end - probe_end, hidden.device)
        return stack.result()

    def _read(self, measured: Measured | None) -> Reading:
        if measured is None:
            return Reading()
        table = self.ranks.sum(torch.stack(measured.sums, 1))
        width = table.shape[1]
        if measured.extremes:
            extremes = self.ranks.maximum(torch.stack(measured.extremes, 1))
            table = torch.cat((table, extremes), 1)
        # One transfer: the only time the decision waits for the device.
        rows = table.tolist()
        return Reading(
            tuple(tuple(row[:width]) for row in rows), tuple(tuple(row[width:]) for row in rows)
        )

    def _commit(
        self,
        call: Call,
        state: BranchState,
        decision: Decision,
        skippable: int,
        device: torch.device,
    ) -> None:
        skipped = skippable if decision.skips else 0
        session = call.session
        session.stats.add(call.step, call.where, decision, len(self.blocks) - skipped, skipped)
        session.stats.measure(session.first_call, device)
        self.store.commit(session, call.where, state)


@dataclass(slots=True)
class _Stack:
    """The loop over the blocks, which can be stopped and taken up again."""

    blocks: nn.ModuleList
    joint: bool
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    hidden: Tensor = None  # type: ignore[assignment]

    def run(self, first: int, end: int, hidden: Tensor | None = None) -> None:
        """Runs blocks first..end-1 on the stream as it stands (or on `hidden`)."""
        if hidden is not None:
            self.hidden = hidden
        for block in self.blocks[first:end]:
            out = block(self.hidden, *self.args, **self.kwargs)
            if self.joint:
                self.hidden, self.args = out[0], (out[1], *self.args[1:])
            else:
                self.hidden = out

    def result(self) -> Tensor | tuple[Tensor, Tensor]:
        """What a transformer's loop expects of its last block."""
        return (self.hidden, self.args[0]) if self.joint else self.hidden


def _range(policy: Policy, blocks: int) -> tuple[int, int]:
    first, end = policy.blocks
    return min(first, blocks), blocks if end is None else min(end, blocks)


def _recomputed(
    policy: Policy, state: BranchState, step: Step, features: Features, output: Tensor
) -> BranchState:
    if not policy.window:
        return state
    residual = output - features.input
    return state.after_recompute(policy.remember(step, features, residual), policy.window)
