"""FLUX and models built like it: dual-stream blocks, then single-stream ones, over packed image tokens and text."""

from __future__ import annotations

from warpcache_ray.models.adapter import BlockList, ModelAdapter

_JOINT = ("encoder_hidden_states", "hidden_states")
_APART = (BlockList("transformer_blocks", _JOINT), BlockList("single_transformer_blocks", _JOINT))
_JOINED = (
    BlockList("transformer_blocks", _JOINT),
    BlockList("single_transformer_blocks", prefixed=True),
)

ADAPTER = ModelAdapter("FluxTransformer2DModel", _APART, latent="bnc")
BRIA = ModelAdapter(
    "BriaTransformer2DModel", _APART, latent="bnc", noisy="in_channels", together=True
)
OVIS = ModelAdapter("OvisImageTransformer2DModel", _APART, latent="bnc")
FLUX2 = ModelAdapter("Flux2Transformer2DModel", _JOINED, latent="bnc")
CHROMA = ModelAdapter("ChromaTransformer2DModel", _JOINED, latent="bnc")
AURAFLOW = ModelAdapter(
    "AuraFlowTransformer2DModel",
    (
        BlockList("joint_transformer_blocks", _JOINT),
        BlockList("single_transformer_blocks", prefixed=True),
    ),
    latent="bchw",
    together=True,
)
