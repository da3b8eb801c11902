"""Motion between two feature maps, and features moved along it (WorldCache, arXiv 2603.22286, eq. 11-12)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from warpcache_ray.core.types import Grid

_WINDOW = 5
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

    Channel means are compared coarse to fine: first at `scale` of the grid's size, then at the full size on what
    the coarse flow leaves.
    """
    before, after = (to_maps(t.float().mean(-1, keepdim=True), grid) for t in (previous, current))
    size = (max(4, round(grid.rows * scale)), max(4, round(grid.columns * scale)))
    coarse = lucas_kanade(*(F.interpolate(m, size=size, mode="area") for m in (before, after)))
    ratio = torch.tensor([grid.columns / size[1], grid.rows / size[0]], device=coarse.device)
    flow = F.interpolate(coarse, size=(grid.rows, grid.columns), mode="bilinear")
    flow = flow * ratio.view(1, 2, 1, 1)
    return flow + lucas_kanade(move(before, flow), after)


def warp_tokens(tokens: Tensor, flow: Tensor, grid: Grid) -> Tensor:
    """Moves (batch, tokens, channels) along `flow`, frame by frame."""
    return to_tokens(move(to_maps(tokens, grid), flow), tokens.shape[0]).to(tokens.dtype)
