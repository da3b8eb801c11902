"""The stand-in for a transformer's block stack: probe, decide, then recompute or approximate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from warpcache_ray.core.policy import Measured, Reading
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
        stack = _Stack(self.blocks, self.joint, args, kwargs, hidden)
        policy, state = call.session.policy, call.session.state(call.where, hidden)
        first, probe_end, end = policy.block_range(len(self.blocks))

        stack.run(0, first)
        start = stack.mark()
        decision = policy.forced(state, call.step)
        stack.run(first, probe_end)
        features = Features(start.hidden, stack.hidden, call.grid)
        reading = Reading()
        if decision is None:
            reading = self._read(policy.measure(state, features))
            decision = policy.decide(state, call.step, reading)
        if decision.skips:
            assert state.latest is not None
            residual = policy.approximate(state, features, reading, decision)
            stack.skip(start, residual, state.latest.text_residual)
            state = state.after_skip()
        else:
            stack.run(probe_end, end)
            if policy.window:
                snapshot = policy.remember(call.step, features, stack.hidden - start.hidden)
                if self.joint and end < len(self.blocks):
                    snapshot = replace(snapshot, text_residual=stack.text - start.text)
                state = state.after_recompute(snapshot, policy.window)
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


@dataclass(frozen=True, slots=True)
class _Mark:
    """The stream at one place of the stack; `text` is None for models without joint text tokens."""

    hidden: Tensor
    text: Any


@dataclass(slots=True)
class _Stack:
    """The loop over the blocks, which can be stopped and taken up again."""

    blocks: nn.ModuleList
    joint: bool
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    hidden: Tensor

    @property
    def text(self) -> Any:
        """The text tokens of a joint model."""
        return self.args[0] if self.joint else None

    def mark(self) -> _Mark:
        """The stream as it stands."""
        return _Mark(self.hidden, self.text)

    def run(self, first: int, end: int) -> None:
        """Runs blocks first..end-1 on the stream."""
        for block in self.blocks[first:end]:
            out = block(self.hidden, *self.args, **self.kwargs)
            if self.joint:
                self.hidden, self.args = out[0], (out[1], *self.args[1:])
            else:
                self.hidden = out

    def skip(self, start: _Mark, residual: Tensor, text_residual: Tensor | None) -> None:
        """Puts the stream where the blocks since `start` would have left it."""
        self.hidden = start.hidden + residual
        if text_residual is not None:
            self.args = (start.text + text_residual, *self.args[1:])

    def result(self) -> Tensor | tuple[Tensor, Tensor]:
        """What a transformer's loop expects of its last block."""
        return (self.hidden, self.text) if self.joint else self.hidden
