"""Stable Diffusion 3 and 3.5: one list of blocks over image and text tokens jointly; the last one drops the text."""

from __future__ import annotations

from warpcache_ray.models.adapter import BlockList, ModelAdapter

ADAPTER = ModelAdapter(
    "SD3Transformer2DModel",
    (BlockList("transformer_blocks", ("encoder_hidden_states", "hidden_states")),),
    latent="bchw",
    together=True,
)
