"""How the ranks of one replica share a generation."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True)
class Layout:
    """Parallel degrees; their product is the number of ranks, so they can't disagree with it.

    `ulysses` and `ring` split the tokens, `cfg` computes the branches side by side.
    """

    ulysses: int = 1
    ring: int = 1
    cfg: int = 1

    def __post_init__(self) -> None:
        for field in fields(self):
            degree = getattr(self, field.name)
            if degree < 1:
                raise ValueError(f"{field.name}: {degree} is not allowed; it must be 1 or more")

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return self.ulysses * self.ring * self.cfg
