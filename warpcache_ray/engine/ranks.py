"""How the ranks of one replica speak to each other; the engine knows no more of parallelism than this."""

from __future__ import annotations

from typing import Any, Literal, Protocol

from torch import Tensor


class Halves(Protocol):
    """The ranks in two halves, of which one computes cond and the other uncond. Calls are made as in `Ranks`."""

    @property
    def branch(self) -> Literal["cond", "uncond"]:
        """What this rank's half computes."""
        ...

    def exchange(self, output: Tensor) -> tuple[Tensor, Tensor]:
        """The outputs of cond's half and of uncond's, the same on all ranks."""
        ...

    def tell(self, notes: Any) -> tuple[Any, Any]:
        """The notes of cond's half and of uncond's."""
        ...


class Ranks(Protocol):
    """The `size` ranks over which a branch's tokens are shared out, each the same number in a row; this one is at
    `index`. Every rank makes the same calls in the same order."""

    @property
    def index(self) -> int:
        """Place in the group."""
        ...

    @property
    def size(self) -> int:
        """Ranks of the group."""
        ...

    @property
    def halves(self) -> Halves | None:
        """Where cond and uncond are computed side by side, each by a group of its own."""
        ...

    @property
    def decode_together(self) -> bool:
        """A decoding is made by all ranks of both halves, each a part; without, one makes it alone."""
        ...

    def gather(self, values: Tensor) -> Tensor:
        """Each rank's `values`, few numbers, as (ranks, ...)."""
        ...

    def whole(self, tokens: Tensor) -> Tensor:
        """(batch, all ranks' tokens, channels) of each rank's (batch, tokens, channels)."""
        ...

    def broadcast(self, word: int) -> int:
        """The word of the replica's first rank, on all ranks of both halves."""
        ...


class OneRank:
    """A group of one."""

    index = 0
    size = 1
    halves: Halves | None = None
    decode_together = False

    def gather(self, values: Tensor) -> Tensor:
        """The values alone."""
        return values[None]

    def whole(self, tokens: Tensor) -> Tensor:
        """The tokens."""
        return tokens

    def broadcast(self, word: int) -> int:
        """The word."""
        return word
