"""Qwen-Image and its edit variants: one list of blocks over packed image tokens and text jointly."""

from __future__ import annotations

from warpcache_ray.models.adapter import BlockList, ModelAdapter

ADAPTER = ModelAdapter(
    "QwenImageTransformer2DModel",
    (BlockList("transformer_blocks", ("encoder_hidden_states", "hidden_states")),),
    latent="bnc",
    # Its out_channels are those before packing.
    noisy="in_channels",
)
