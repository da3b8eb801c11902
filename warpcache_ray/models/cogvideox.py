"""CogVideoX (frames before channels) and CogView 4: one list of blocks over image and text tokens jointly."""

from __future__ import annotations

from warpcache_ray.models.adapter import BlockList, ModelAdapter

_LISTS = (BlockList("transformer_blocks", ("hidden_states", "encoder_hidden_states")),)

ADAPTER = ModelAdapter("CogVideoXTransformer3DModel", _LISTS, latent="btchw")
COGVIEW4 = ModelAdapter("CogView4Transformer2DModel", _LISTS, latent="bchw")
