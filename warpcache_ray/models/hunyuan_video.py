"""HunyuanVideo and its kin: dual-stream blocks, then single-stream ones, over video and text tokens jointly."""

from __future__ import annotations

from warpcache_ray.models.adapter import BlockList, ModelAdapter

_JOINT = ("hidden_states", "encoder_hidden_states")

ADAPTER = ModelAdapter(
    "HunyuanVideoTransformer3DModel",
    (BlockList("transformer_blocks", _JOINT), BlockList("single_transformer_blocks", _JOINT)),
)
V15 = ModelAdapter("HunyuanVideo15Transformer3DModel", (BlockList("transformer_blocks", _JOINT),))
FRAMEPACK = ModelAdapter(
    "HunyuanVideoFramepackTransformer3DModel",
    (
        BlockList("transformer_blocks", _JOINT, prefixed=True),
        BlockList("single_transformer_blocks", _JOINT, prefixed=True),
    ),
)
"""Earlier frames stand before those that are denoised."""
IMAGE = ModelAdapter(
    "HunyuanImageTransformer2DModel",
    (BlockList("transformer_blocks", _JOINT), BlockList("single_transformer_blocks", _JOINT)),
    latent="bchw",
)
