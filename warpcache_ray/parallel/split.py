"""Which video sizes can be shared out over ranks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil, lcm

from warpcache_ray.errors import InvalidRequest

_REACH = 64
"""How many sizes up and down are tried for one that works."""


@dataclass(frozen=True, slots=True)
class Split:
    """Tokens over `ranks`; each spans `side` × `side` pixels and `depth` latent frames, of which the first stands for
    one frame and the others for `frames` each. `pads`: the last ranks' share may end in padding. `height` is the least
    with which each rank has rows to decode."""

    ranks: int
    side: int
    frames: int
    depth: int = 1
    pads: bool = False
    height: int = 1

    def tokens(self, height: int, width: int, num_frames: int) -> int:
        """Tokens of a video."""
        latent_frames = (num_frames - 1) // self.frames + 1
        return latent_frames // self.depth * (height // self.side) * (width // self.side)

    def fits(self, tokens: int) -> bool:
        """So many tokens can be shared out, with a token at least for each rank."""
        if not self.pads:
            return tokens % self.ranks == 0
        return tokens > (self.ranks - 1) * ceil(tokens / self.ranks)

    def check(self, height: int, width: int, num_frames: int) -> None:
        """A video of this size can be shared out.

        Raises:
            InvalidRequest: it can't; the message names the nearest sizes that can.
        """
        if height < self.height:
            raise InvalidRequest(
                f"height = {height}: not every rank has rows to decode (parallel.vae); "
                f"it must be {self.height} or more",
                "height",
            )
        size = {"height": height, "width": width, "num_frames": num_frames}
        tokens = self.tokens(**size)
        if self.fits(tokens):
            return
        fine = [f"{name} = {value}" for name in size for value in self._near(name, size)]
        raise InvalidRequest(
            f"height = {height}, width = {width}, num_frames = {num_frames}: {tokens} tokens can't be shared out over "
            f"{self.ranks} ranks; with the others as they are, this works: {', '.join(fine)}",
            "height",
        )

    def _near(self, name: str, size: dict[str, int]) -> Iterator[int]:
        """The nearest value below and above, with which the size works."""
        # Pipelines refuse heights and widths that 16 doesn't divide.
        pitch = self.frames if name == "num_frames" else lcm(16, self.side)
        for sign in (-1, 1):
            values = (size[name] + sign * n * pitch for n in range(1, _REACH))
            for value in values:
                if value > 0 and self.fits(self.tokens(**{**size, name: value})):
                    yield value
                    break
