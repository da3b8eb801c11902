"""Block-matching motion between two feature maps, and features moved along it (the `warp` package of warp-cache).

The seed names the parts and leaves the numbers open; ours are: blocks of 4×4 tokens, moves of up to two tokens,
matched by the absolute difference of at most 16 group means of the channels, and α = 1 - exp(-|v|).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

from warpcache_ray.core.types import Grid

if TYPE_CHECKING:
    from torch import Tensor

_BLOCK = 4
_RADIUS = 2
_GROUPS = 16


@dataclass(frozen=True, slots=True)
class MotionField:
    """`vectors` (batch·frames, 2, rows, columns): the displacement (x, y) in tokens by which features have moved."""

    vectors: Tensor

    @property
    def magnitudes(self) -> Tensor:
        """(batch·frames, 1, rows, columns): length of each vector."""
        return self.vectors.square().sum(1, keepdim=True).sqrt()

    @property
    def mean(self) -> float:
        """Mean length."""
        return float(self.magnitudes.mean())

    @property
    def max(self) -> float:
        """Greatest length."""
        return float(self.magnitudes.max())

    def interpolate(self, x: float, y: float) -> Tensor:
        """(batch·frames, 2): the vector at column x and row y, bilinear; outside, that of the edge."""
        rows, columns = self.vectors.shape[-2:]
        x, y = min(max(x, 0.0), columns - 1.0), min(max(y, 0.0), rows - 1.0)
        left, top = int(x), int(y)
        right, bottom = min(left + 1, columns - 1), min(top + 1, rows - 1)
        upper = self.vectors[..., top, left].lerp(self.vectors[..., top, right], x - left)
        lower = self.vectors[..., bottom, left].lerp(self.vectors[..., bottom, right], x - left)
        return upper.lerp(lower, y - top)


@dataclass(frozen=True, slots=True)
class Blend:
    """Features blended along a motion field, and the weights (batch·frames, 1, rows, columns) of the moved ones."""

    tokens: Tensor
    alpha: Tensor

    @property
    def mean_alpha(self) -> float:
        """Mean weight of the moved ones."""
        return float(self.alpha.mean())


def match_blocks(previous: Tensor, current: Tensor, grid: Grid) -> MotionField:
    """The field by which `previous` (batch, tokens, channels) moved to become `current`, frame by frame: for each
    block the move of least difference, of equal ones the shortest; bilinear between the blocks."""
    import torch
    import torch.nn.functional as F

    before, after = (_groups(tokens, grid) for tokens in (previous, current))
    moves = sorted(
        product(range(-_RADIUS, _RADIUS + 1), repeat=2), key=lambda m: m[0] ** 2 + m[1] ** 2
    )
    padded = F.pad(before, (_RADIUS,) * 4, mode="replicate")
    block = (min(_BLOCK, grid.rows), min(_BLOCK, grid.columns))

    def cost(x: int, y: int) -> Tensor:
        top, left = _RADIUS - y, _RADIUS - x
        moved = padded[..., top : top + grid.rows, left : left + grid.columns]
        return F.avg_pool2d((after - moved).abs().mean(1, keepdim=True), block, ceil_mode=True)

    best = torch.cat([cost(*move) for move in moves], 1).argmin(1)
    vectors = torch.tensor(moves, dtype=torch.float32, device=best.device)[best].permute(0, 3, 1, 2)
    size = (grid.rows, grid.columns)
    return MotionField(F.interpolate(vectors, size=size, mode="bilinear"))


def blend_along(tokens: Tensor, field: MotionField, grid: Grid) -> Blend:
    """`tokens` moved along the field by bilinear inverse warp, weighed by α = 1 - exp(-|v|) against themselves
    unmoved."""
    from warpcache_ray.core.warp import move, to_maps, to_tokens

    maps = to_maps(tokens, grid)
    alpha = -(-field.magnitudes).expm1()
    blended = maps.float().lerp(move(maps, field.vectors), alpha.expand_as(maps))
    return Blend(to_tokens(blended, tokens.shape[0]).to(tokens.dtype), alpha)


def simple_blend(cached: Tensor, current: Tensor, alpha: float) -> Tensor:
    """cached + α (current - cached): the fallback where no field can be told."""
    return cached.lerp(current, alpha)


def _groups(tokens: Tensor, grid: Grid) -> Tensor:
    import torch

    from warpcache_ray.core.warp import to_maps

    groups = tokens.float().tensor_split(min(_GROUPS, tokens.shape[-1]), -1)
    return to_maps(torch.stack([group.mean(-1) for group in groups], -1), grid)
