"""Mochi: one list of blocks over video and text tokens jointly; the last one leaves the text as it is."""

from __future__ import annotations

from warpcache_ray.models.adapter import BlockList, ModelAdapter

ADAPTER = ModelAdapter(
    "MochiTransformer3DModel",
    (BlockList("transformer_blocks", ("hidden_states", "encoder_hidden_states")),),
)
