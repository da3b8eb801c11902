"""Wan 2.1 and 2.2: one list of blocks over video tokens; text enters by cross-attention."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from warpcache_ray.core.types import Grid
from warpcache_ray.models.adapter import ModelAdapter


def _grid(config: Any, latent: Tensor) -> Grid:
    frames, rows, columns = (
        n // p for n, p in zip(latent.shape[2:], config.patch_size, strict=True)
    )
    return Grid(frames, rows, columns)


ADAPTER = ModelAdapter("WanTransformer3DModel", ("blocks",), joint=False, grid=_grid)
