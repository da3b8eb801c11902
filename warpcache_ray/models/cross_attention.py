"""Image and video DiTs with one list of blocks over their own tokens; text enters by cross-attention."""

from __future__ import annotations

from warpcache_ray.models.adapter import BlockList, ModelAdapter

_LISTS = (BlockList("transformer_blocks"),)

ALLEGRO = ModelAdapter("AllegroTransformer3DModel", _LISTS, together=True)
SANA_VIDEO = ModelAdapter("SanaVideoTransformer3DModel", _LISTS, together=True)
SANA = ModelAdapter("SanaTransformer2DModel", _LISTS, latent="bchw", together=True)
PIXART = ModelAdapter(
    "PixArtTransformer2DModel", _LISTS, latent="bchw", noisy="in_channels", together=True
)
HUNYUAN_DIT = ModelAdapter(
    "HunyuanDiT2DModel",
    (BlockList("blocks"),),
    latent="bchw",
    noisy="in_channels",
    together=True,
    to_the_end=True,
)
LUMINA2 = ModelAdapter(
    "Lumina2Transformer2DModel", (BlockList("layers", prefixed=True),), latent="bchw"
)
"""Text stands before the image in one row of tokens."""
