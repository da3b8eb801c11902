"""HunyuanVideo: dual-stream blocks, then single-stream ones, over video and text tokens jointly."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from warpcache_ray.core.types import Grid
from warpcache_ray.models.adapter import ModelAdapter


def _grid(config: Any, latent: Tensor) -> Grid:
    frames, rows, columns = latent.shape[2:]
    return Grid(
        frames // config.patch_size_t, rows // config.patch_size, columns // config.patch_size
    )


ADAPTER = ModelAdapter(
    "HunyuanVideoTransformer3DModel",
    ("transformer_blocks", "single_transformer_blocks"),
    joint=True,
    grid=_grid,
)
