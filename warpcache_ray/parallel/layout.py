"""How the ranks of one replica share a generation."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Layout:
    """Parallel degrees; their product is the number of ranks, so they can't disagree with it.

    `ulysses` and `ring` split the tokens, `cfg` computes the branches side by side. With `vae` all ranks decode,
    each its rows of the video; else the first one decodes alone.
    """

    ulysses: int = 1
    ring: int = 1
    cfg: int = 1
    vae: bool = False

    def __post_init__(self) -> None:
        for name in ("ulysses", "ring", "cfg"):
            degree = getattr(self, name)
            if degree < 1:
                raise ValueError(f"{name}: {degree} is not allowed; it must be 1 or more")
        if self.vae and self.world_size == 1:
            raise ValueError("vae: one rank decodes alone; ulysses, ring or cfg must be 2 or more")

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return self.ulysses * self.ring * self.cfg
