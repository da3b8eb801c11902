"""How much each block's work changes from step to step, seen in the runs that are made anyway."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from inspect import signature
from typing import Any

from torch import Tensor, nn

from warpcache_ray.models import adapter_for
from warpcache_ray.models.adapter import BlockList

TOKENS = 256
"""So many of a block's tokens are kept, evenly spaced: of a large model all would be gigabytes."""


@dataclass(slots=True)
class Blocks:
    """`changes[branch][block]`: the relative change of what the block adds to its input, step by step, 0 at the first.
    Whoever watches says which branch is being computed."""

    count: int
    branch: str = ""
    changes: dict[str, list[list[float]]] = field(default_factory=dict)
    before: dict[tuple[str, int], Tensor] = field(default_factory=dict)

    def saw(self, index: int, given: Tensor, made: Tensor) -> None:
        """One block at one step."""
        every = -(-given.shape[1] // TOKENS)
        added = (made[:, ::every] - given[:, ::every]).float()
        own = self.changes.setdefault(self.branch, [[] for _ in range(self.count)])[index]
        before = self.before.get((self.branch, index))
        own.append(0.0 if before is None else float((added - before).norm() / added.norm()))
        self.before[self.branch, index] = added


@contextmanager
def watched(transformer: nn.Module) -> Iterator[Blocks]:
    """Watches all blocks of a transformer; of one without an adapter nobody knows them."""
    adapter = adapter_for(transformer)
    lists = adapter.lists if adapter else ()
    found = [(block, each) for each in lists for block in getattr(transformer, each.name)]
    blocks = Blocks(len(found))
    handles = [
        block.register_forward_hook(partial(_saw, blocks, index, each), with_kwargs=True)
        for index, (block, each) in enumerate(found)
    ]
    try:
        yield blocks
    finally:
        for handle in handles:
            handle.remove()


def _saw(
    blocks: Blocks,
    index: int,
    of: BlockList,
    block: nn.Module,
    args: tuple[Any, ...],
    kwargs: Any,
    out: Any,
) -> None:
    given = signature(block.forward).bind(*args, **kwargs).arguments[of.video]
    made = out[of.returns.index(of.video)] if isinstance(out, tuple) else out
    blocks.saw(index, given, made)
