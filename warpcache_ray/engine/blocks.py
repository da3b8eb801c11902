"""Sites `blocks` and `layer`: of a transformer's own loop over its blocks, some are left out.

The block lists stay where they are, with the same blocks under the same names. While a forward is under way they hand
out stand-ins, which run the block, or pass the stream on as it is; the last one left out puts it where all would have.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from warpcache_ray.core.policy import Reading
from warpcache_ray.core.types import BranchState, Decision, Features, Site
from warpcache_ray.engine.call import Call, deliberate
from warpcache_ray.engine.ranks import Ranks
from warpcache_ray.engine.session import SessionStore
from warpcache_ray.engine.shard import Shard
from warpcache_ray.engine.streams import Form, Stream
from warpcache_ray.models.adapter import ModelAdapter


class BlockStack:
    """The blocks of one transformer: `install` puts it in the way of its calls, `remove` takes it out again."""

    def __init__(
        self, transformer: nn.Module, adapter: ModelAdapter, ranks: Ranks, store: SessionStore
    ) -> None:
        self.transformer = transformer
        self.adapter = adapter
        self.ranks = ranks
        self.store = store
        self.lists: list[nn.ModuleList] = [getattr(transformer, n) for n in adapter.block_lists]
        self.under_way: _Forward | None = None

    def __len__(self) -> int:
        return sum(map(len, self.lists))

    def install(self) -> None:
        """From now on the transformer's loops ask here."""
        first = 0
        for name, blocks in zip(self.adapter.block_lists, self.lists, strict=True):
            setattr(self.transformer, name, WatchedList(blocks, self, first))
            first += len(blocks)

    def remove(self) -> None:
        """Puts the lists back."""
        for name, blocks in zip(self.adapter.block_lists, self.lists, strict=True):
            setattr(self.transformer, name, blocks)

    def compute(self, call: Call, proceed: Callable[[], Any]) -> Any:
        """Runs the transformer, its blocks as the call's policy says. State is replaced last, so a forward that raises
        changes nothing."""
        self.under_way = forward = _Forward(self, call)
        try:
            out = proceed()
        finally:
            self.under_way = None
        for outcome in forward.outcomes:
            outcome.call.commit(
                self.store, outcome.state, outcome.decision, outcome.run, outcome.skipped
            )
        return out


class WatchedList(nn.ModuleList):
    """A transformer's block list, which hands out stand-ins while a forward is under way. Its blocks count from
    `first` in the stack."""

    def __init__(self, blocks: nn.ModuleList, stack: BlockStack, first: int) -> None:
        super().__init__(blocks)
        self.stack = stack
        self.first = first

    def __iter__(self) -> Iterator[Any]:
        forward = self.stack.under_way
        blocks = super().__iter__()
        if forward is None:
            return blocks
        return (_StandIn(forward, i, block) for i, block in enumerate(blocks, self.first))

    def __getitem__(self, index: Any) -> Any:
        chosen = list(self)[index]
        whole = isinstance(index, slice) and self.stack.under_way is None
        return nn.ModuleList(chosen) if whole else chosen


@dataclass(slots=True, eq=False)
class _StandIn:
    """One block in one forward."""

    forward: _Forward
    index: int
    block: nn.Module

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.forward.through(self.index, self.block, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.block, name)


class _Forward:
    """One run of a transformer: the spans of blocks that are decided on, each when the stream comes to it."""

    def __init__(self, stack: BlockStack, call: Call) -> None:
        self.stack = stack
        self.outcomes: list[_Outcome] = []
        self._forms: dict[int, Form] = {}
        self._under_way: _SpanUnderWay | None = None
        policy, count = call.policy, len(stack)
        first, probe_end, end = policy.block_range(count) if policy.window else (0, 0, count)
        if policy.site is Site.BLOCKS:
            spans = [_Span(call, first, probe_end, end)]
        else:
            spans = [_Span(call.layer(i), i, i, i + 1) for i in range(first, end)]
        self._spans = {span.first: span for span in spans}

    def through(
        self, index: int, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """What block number `index` gives, or what stands for it."""
        starting = self._spans.get(index)
        if starting is None and self._under_way is None:
            return block(*args, **kwargs)
        form = self._form(index, block)
        given = form.given(args, kwargs)
        if starting is not None:
            self._under_way = _SpanUnderWay(starting, self.stack, form.read(given))
        under_way = self._under_way
        assert under_way is not None
        if index == under_way.span.probe_end:
            under_way.decide(form.read(given))
        last = index + 1 == under_way.span.end
        if under_way.instead is None:
            given = block(*args, **kwargs)
        elif last:
            given = form.write(under_way.instead)
        if last:
            self.outcomes.append(under_way.outcome(form.read(given)))
            self._under_way = None
        return given

    def _form(self, index: int, block: nn.Module) -> Form:
        """That of the list in which the block stands."""
        lists = self.stack.lists
        number = next(n for n in range(len(lists)) if index < sum(map(len, lists[: n + 1])))
        if number not in self._forms:
            grid = next(iter(self._spans.values())).call.grid
            self._forms[number] = Form(self.stack.adapter.lists[number], block, grid)
        return self._forms[number]


@dataclass(frozen=True, slots=True)
class _Span:
    """Blocks that are decided on together: those up to `probe_end` run, the others up to `end` may be left out."""

    call: Call
    first: int
    probe_end: int
    end: int


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What is to be committed of one span."""

    call: Call
    state: BranchState
    decision: Decision
    run: int
    skipped: int


class _SpanUnderWay:
    """A span that the stream has come to; `instead` is where it goes on if blocks are left out."""

    def __init__(self, span: _Span, stack: BlockStack, start: Stream) -> None:
        self.span = span
        self.instead: Stream | None = None
        self._course = _course(span, stack, start)
        next(self._course)

    def decide(self, probe: Stream) -> None:
        """The stream has come to the probe's end."""
        self.instead = self._course.send(probe)

    def outcome(self, end: Stream) -> _Outcome:
        """The stream has come to the span's end."""
        try:
            self._course.send(end)
        except StopIteration as stop:
            outcome: _Outcome = stop.value
            return outcome
        raise AssertionError("a span has one end")


def _course(
    span: _Span, stack: BlockStack, start: Stream
) -> Generator[Stream | None, Stream, _Outcome]:
    """Takes in the stream at the probe's end and at the span's; gives, in between, where it is to go on."""
    call = span.call
    policy, state = call.policy, call.state(start.video)
    if state.latest is not None and not start.fits(state.latest.beside):
        # The prompt has changed its length.
        state = BranchState()
    decision = policy.forced(state, call.step)
    probe = yield None
    features = Features(start.video, probe.video, call.grid)
    shard = Shard(stack.ranks, call.grid, probe.video.shape[1])
    reading = Reading()
    if decision is None:
        decision, reading = deliberate(
            policy, *shard.counted(state, features), call.step, stack.ranks
        )
    trail = policy.trail(state, call.step, features, reading, decision)
    if decision.skips:
        assert state.latest is not None
        residual = shard.approximate(policy, state, features, reading, decision)
        yield start.moved(residual, state.latest.beside)
        state = state.after_skip(trail)
    else:
        end = yield None
        if policy.window:
            snapshot = policy.remember(call.step, features, end.video - start.video)
            snapshot = replace(snapshot, beside=end.since(start))
            state = state.after_recompute(snapshot, policy.window, trail)
    skipped = span.end - span.probe_end if decision.skips else 0
    # Of the whole stack where it is one site, of one block where each is.
    total = len(stack) if call.where.layer is None else 1
    return _Outcome(call, state, decision, total - skipped, skipped)
