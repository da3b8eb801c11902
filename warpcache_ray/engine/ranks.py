"""How the ranks of one replica speak to each other; the engine knows no more of parallelism than this."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Ranks(Protocol):
    """The sequence-parallel group. Every rank makes the same calls in the same order."""

    def sum(self, values: Tensor) -> Tensor:
        """Elementwise sum over the group."""
        ...

    def maximum(self, values: Tensor) -> Tensor:
        """Elementwise maximum over the group."""
        ...

    def broadcast(self, word: int) -> int:
        """Rank 0's word, on all ranks."""
        ...


class OneRank:
    """A group of one."""

    def sum(self, values: Tensor) -> Tensor:
        """The values."""
        return values

    def maximum(self, values: Tensor) -> Tensor:
        """The values."""
        return values

    def broadcast(self, word: int) -> int:
        """The word."""
        return word
