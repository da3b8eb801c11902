"""Cosmos-Predict 1, 2 and 2.5: one list of blocks over video tokens; text enters by cross-attention."""

from __future__ import annotations

from warpcache_ray.models.adapter import BlockList, ModelAdapter

ADAPTER = ModelAdapter("CosmosTransformer3DModel", (BlockList("transformer_blocks"),), guidance=1.0)
