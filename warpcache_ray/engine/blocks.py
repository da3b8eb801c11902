"""Sites `blocks` and `layer`, a stand-in for the block stack: probe, decide, then recompute or approximate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from warpcache_ray.core.policy import Reading
from warpcache_ray.core.types import BranchState, Decision, Features, Site
from warpcache_ray.engine.call import Call, deliberate
from warpcache_ray.engine.ranks import Ranks
from warpcache_ray.engine.session import SessionStore
from warpcache_ray.engine.shard import Shard


class CachedBlocks(nn.Module):
    """Runs the blocks as the transformer's own loop would, or leaves some out.

    `lengths` are those of the lists that the blocks came from. `call` is set before each forward; without one
    (site `output`) all blocks run. State is replaced once, last, so a forward that raises changes nothing.
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
        call, self.call = self.call, None
        stack = _Stack(self.blocks, self.joint, args, kwargs, hidden)
        if call is None:
            stack.run(0, len(self.blocks))
            return stack.result()
        outcomes = self._layers(stack, call) if call.policy.site is Site.LAYER else ()
        if call.policy.site is Site.BLOCKS:
            first, probe_end, end = call.policy.block_range(len(self.blocks))
            stack.run(0, first)
            outcomes = (self._span(stack, call, first, probe_end, end),)
            stack.run(end, len(self.blocks))
        for outcome in outcomes:
            outcome.call.commit(
                self.store, outcome.state, outcome.decision, outcome.run, outcome.skipped
            )
        return stack.result()

    def _layers(self, stack: _Stack, call: Call) -> tuple[_Outcome, ...]:
        first, _, end = call.policy.block_range(len(self.blocks))
        stack.run(0, first)
        outcomes = [self._span(stack, call.layer(i), i, i, i + 1) for i in range(first, end)]
        stack.run(end, len(self.blocks))
        return tuple(outcomes)

    def _span(self, stack: _Stack, call: Call, first: int, probe_end: int, end: int) -> _Outcome:
        policy, state, start = call.policy, call.state(stack.hidden), stack.mark()
        decision = policy.forced(state, call.step)
        stack.run(first, probe_end)
        features = Features(start.hidden, stack.hidden, call.grid)
        shard = Shard(self.ranks, call.grid, stack.hidden.shape[1])
        reading = Reading()
        if decision is None:
            counted = shard.counted(state, features)
            decision, reading = deliberate(policy, *counted, call.step, self.ranks)
        trail = policy.trail(state, call.step, features, reading, decision)
        if decision.skips:
            assert state.latest is not None
            residual = shard.approximate(policy, state, features, reading, decision)
            stack.skip(start, residual, state.latest.text_residual)
            state = state.after_skip(trail)
        else:
            stack.run(probe_end, end)
            if policy.window:
                snapshot = policy.remember(call.step, features, stack.hidden - start.hidden)
                if self.joint and (end < len(self.blocks) or call.where.layer is not None):
                    snapshot = replace(snapshot, text_residual=stack.text - start.text)
                state = state.after_recompute(snapshot, policy.window, trail)
        skipped = end - probe_end if decision.skips else 0
        # Of the whole stack where it is one site, of one block where each is.
        total = len(self.blocks) if call.where.layer is None else 1
        return _Outcome(call, state, decision, total - skipped, skipped)


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What is to be committed of one site."""

    call: Call
    state: BranchState
    decision: Decision
    run: int
    skipped: int


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
