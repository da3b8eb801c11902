"""Cosmos-Predict 1, 2 and 2.5: one list of blocks over video tokens; text enters by cross-attention."""

from __future__ import annotations

from warpcache_ray.models import wan
from warpcache_ray.models.adapter import ModelAdapter

ADAPTER = ModelAdapter(
    "CosmosTransformer3DModel",
    ("transformer_blocks",),
    joint=False,
    grid=wan.ADAPTER.grid,
    guidance=1.0,
)
