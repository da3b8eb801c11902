"""Motion between two feature maps, and features moved along it (WorldCache, arXiv 2603.22286, eq. 11-12)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from warpcache_ray.core.types import Grid

_WINDOW = 5
_LEVELS = 4
_SOBEL = ((1.0, 0.0, -1.0), (2.0, 0.0, -2.0), (1.0, 0.0, -1.0))


def to_maps(tokens: Tensor, grid: Grid) -> Tensor:
    """(batch, frames·rows·columns, channels) → (batch·frames, channels, rows, columns)."""
    return tokens.reshape(-1, grid.rows, grid.columns, tokens.shape[-1]).permute(0, 3, 1, 2)


def to_tokens(maps: Tensor, batch: int) -> Tensor:
    """Inverse of `to_maps`."""
    return maps.permute(0, 2, 3, 1).reshape(batch, -1, maps.shape[1])


def lucas_kanade(previous: Tensor, current: Tensor) -> Tensor:
    """One Lucas-Kanade step (1981) in a box window: the (n, 2, rows, columns) displacement (x, y) in pixels by
    which `previous` (n, 1, rows, columns) has moved to become `current`."""
    kernel = torch.tensor(_SOBEL, dtype=previous.dtype, device=previous.device) / 8
    kernels = torch.stack((kernel.flip(1), kernel.T.flip(0)))[:, None]
    gx, gy = F.conv2d(F.pad(previous, (1,) * 4, mode="replicate"), kernels).chunk(2, 1)
    gt = current - previous

    def window(product: Tensor) -> Tensor:
        return F.avg_pool2d(product, _WINDOW, 1, _WINDOW // 2, count_include_pad=False)

    xx, yy, xy = window(gx * gx), window(gy * gy), window(gx * gy)
    xt, yt = window(gx * gt), window(gy * gt)
    # Levenberg's term keeps flat regions still instead of dividing by nothing.
    damping = 1e-3 * (xx + yy).mean((2, 3), keepdim=True) + 1e-12
    xx, yy = xx + damping, yy + damping
    determinant = xx * yy - xy * xy
    return torch.cat((xy * yt - yy * xt, xy * xt - xx * yt), 1) / determinant


def move(maps: Tensor, flow: Tensor) -> Tensor:
    """Bilinear inverse warp in float32: the value at p is read at p - flow(p); edges repeat."""
    maps = maps.float().contiguous()
    rows, columns = maps.shape[-2:]
    y, x = torch.meshgrid(
        torch.arange(rows, device=maps.device),
        torch.arange(columns, device=maps.device),
        indexing="ij",
    )
    source_x = (x - flow[:, 0]) * (2 / max(columns - 1, 1)) - 1
    source_y = (y - flow[:, 1]) * (2 / max(rows - 1, 1)) - 1
    points = torch.stack((source_x, source_y), -1)
    return F.grid_sample(maps, points, padding_mode="border", align_corners=True)


def estimate_flow(previous: Tensor, current: Tensor, grid: Grid, scale: float) -> Tensor:
    """(batch·frames, 2, rows, columns) flow in tokens from `previous` to `current` (batch, tokens, channels).

    Channel means are compared coarse to fine, each level `scale` of the next one's size: every level adds to what the
    coarser ones found, so that moves of several tokens are followed as long as the coarsest sees about one.
    """
    before, after = (to_maps(t.float().mean(-1, keepdim=True), grid) for t in (previous, current))
    sizes = _pyramid(grid, scale)
    flow = before.new_zeros(before.shape[0], 2, *sizes[-1])
    for size in reversed(sizes):
        coarse = [F.interpolate(maps, size=size, mode="area") for maps in (before, after)]
        flow = _resized(flow, size)
        flow = flow + lucas_kanade(move(coarse[0], flow), coarse[1])
    return flow


def _pyramid(grid: Grid, scale: float) -> list[tuple[int, int]]:
    """Sizes from fine to coarse: two at least, then as long as the window fits."""
    sizes = [(grid.rows, grid.columns)]
    while len(sizes) < 2 or (len(sizes) < _LEVELS and min(sizes[-1]) * scale >= _WINDOW):
        rows, columns = sizes[-1]
        sizes.append((max(4, round(rows * scale)), max(4, round(columns * scale))))
    return sizes


def _resized(flow: Tensor, size: tuple[int, int]) -> Tensor:
    """The flow on another size, in that size's pixels."""
    rows, columns = flow.shape[-2:]
    ratio = flow.new_tensor([size[1] / columns, size[0] / rows]).view(1, 2, 1, 1)
    return F.interpolate(flow, size=size, mode="bilinear") * ratio


def warp_tokens(tokens: Tensor, flow: Tensor, grid: Grid) -> Tensor:
    """Moves (batch, tokens, channels) along `flow`, frame by frame."""
    return to_tokens(move(to_maps(tokens, grid), flow), tokens.shape[0]).to(tokens.dtype)
