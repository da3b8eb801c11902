"""The toys that make images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from toy import CROSS, HEAD, HEADS, TEXT, WIDTH, Extra, Toy, mask, pooled


def _ids(count: int, width: int) -> Tensor:
    return torch.stack([torch.arange(count, dtype=torch.float32)] * width, -1)


def _flux(width: int = 3, width_pooled: int | None = None, guidance: bool = False) -> Extra:
    def given(text: Tensor) -> dict[str, Any]:
        arguments = {"img_ids": _ids(16, width), "txt_ids": _ids(TEXT, width)}
        if width_pooled:
            arguments["pooled_projections"] = text.new_zeros(1, width_pooled) + text.mean()
        if guidance:
            arguments["guidance"] = torch.ones(1)
        return arguments

    return given


def _hunyuan_dit(text: Tensor) -> dict[str, Any]:
    mask = torch.ones(1, TEXT)
    angles = torch.zeros(4, HEAD)
    return {
        "text_embedding_mask": mask,
        "encoder_hidden_states_t5": text,
        "text_embedding_mask_t5": mask,
        "image_meta_size": torch.ones(1, 6),
        "style": torch.zeros(1, dtype=torch.long),
        "image_rotary_emb": (angles.cos(), angles.sin()),
    }


_FLUX = {
    **CROSS,
    "in_channels": 8,
    "num_layers": 2,
    "num_single_layers": 2,
    "joint_attention_dim": 16,
    "axes_dims_rope": (4, 6, 6),
}
_IMAGE, _PACKED = (1, 4, 4, 4), (1, 16, 8)

TOYS: dict[str, Toy] = {
    "HunyuanImage 2.1": Toy(
        "HunyuanImageTransformer2DModel",
        {
            **CROSS,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 2,
            "num_single_layers": 2,
            "num_refiner_layers": 1,
            "mlp_ratio": 2.0,
            "text_embed_dim": 16,
            "rope_axes_dim": (8, 8),
        },
        _IMAGE,
        lambda text: {"encoder_attention_mask": mask(text)},
    ),
    "FLUX.1": Toy(
        "FluxTransformer2DModel",
        {**_FLUX, "pooled_projection_dim": 16, "guidance_embeds": True},
        _PACKED,
        _flux(width_pooled=16, guidance=True),
    ),
    "FLUX.1 Fill": Toy(
        "FluxTransformer2DModel",
        {**_FLUX, "pooled_projection_dim": 16, "in_channels": 20, "out_channels": 8},
        (1, 16, 20),
        _flux(width_pooled=16),
        channels=8,
    ),
    "FLUX.2": Toy(
        "Flux2Transformer2DModel",
        {**_FLUX, "timestep_guidance_channels": 8, "axes_dims_rope": (4, 4, 4, 4)},
        _PACKED,
        _flux(width=4, guidance=True),
    ),
    "Chroma": Toy(
        "ChromaTransformer2DModel",
        {
            **_FLUX,
            "approximator_num_channels": 8,
            "approximator_hidden_dim": 16,
            "approximator_layers": 1,
        },
        _PACKED,
        _flux(),
    ),
    "Bria": Toy(
        "BriaTransformer2DModel",
        {**_FLUX, "pooled_projection_dim": 16, "axes_dims_rope": [4, 6, 6]},
        _PACKED,
        _flux(),
    ),
    "Ovis-Image": Toy(
        "OvisImageTransformer2DModel", {**_FLUX, "out_channels": 8}, _PACKED, _flux()
    ),
    "AuraFlow": Toy(
        "AuraFlowTransformer2DModel",
        {
            **CROSS,
            "sample_size": 4,
            "num_mmdit_layers": 2,
            "num_single_dit_layers": 2,
            "joint_attention_dim": 16,
            "caption_projection_dim": WIDTH,
            "pos_embed_max_size": 16,
        },
        _IMAGE,
    ),
    "Qwen-Image": Toy(
        "QwenImageTransformer2DModel",
        {
            **CROSS,
            "in_channels": 8,
            "out_channels": 2,
            "num_layers": 4,
            "joint_attention_dim": 16,
            "axes_dims_rope": (4, 6, 6),
        },
        _PACKED,
        lambda text: {
            "encoder_hidden_states_mask": mask(text).long(),
            "img_shapes": [[(1, 4, 4)]],
        },
    ),
    "Stable Diffusion 3": Toy(
        "SD3Transformer2DModel",
        {
            **CROSS,
            "sample_size": 4,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 4,
            "joint_attention_dim": 16,
            "caption_projection_dim": WIDTH,
            "pooled_projection_dim": 16,
            "pos_embed_max_size": 8,
        },
        _IMAGE,
        pooled(16),
    ),
    "HunyuanDiT": Toy(
        "HunyuanDiT2DModel",
        {
            **CROSS,
            "in_channels": 4,
            "patch_size": 2,
            "sample_size": 4,
            "hidden_size": WIDTH,
            "num_layers": 4,
            "mlp_ratio": 2.0,
            "cross_attention_dim": 16,
            "cross_attention_dim_t5": 16,
            "pooled_projection_dim": 16,
            "text_len": TEXT,
            "text_len_t5": TEXT,
        },
        _IMAGE,
        _hunyuan_dit,
    ),
    "PixArt": Toy(
        "PixArtTransformer2DModel",
        {
            **CROSS,
            "num_layers": 4,
            "cross_attention_dim": WIDTH,
            "sample_size": 4,
            "caption_channels": 16,
            "use_additional_conditions": False,
        },
        _IMAGE,
        lambda text: {"added_cond_kwargs": {"resolution": None, "aspect_ratio": None}},
    ),
    "Sana": Toy(
        "SanaTransformer2DModel",
        {
            **CROSS,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 4,
            "num_cross_attention_heads": HEADS,
            "cross_attention_head_dim": HEAD,
            "cross_attention_dim": WIDTH,
            "caption_channels": 16,
            "sample_size": 4,
        },
        _IMAGE,
    ),
    "Lumina-Image 2": Toy(
        "Lumina2Transformer2DModel",
        {
            "sample_size": 4,
            "in_channels": 4,
            "hidden_size": WIDTH,
            "num_layers": 4,
            "num_refiner_layers": 1,
            "num_attention_heads": HEADS,
            "num_kv_heads": 1,
            "multiple_of": 8,
            "axes_dim_rope": (4, 6, 6),
            "axes_lens": (32, 16, 16),
            "cap_feat_dim": 16,
        },
        _IMAGE,
        lambda text: {"encoder_attention_mask": mask(text).bool()},
    ),
    "CogView 4": Toy(
        "CogView4Transformer2DModel",
        {
            **CROSS,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 4,
            "text_embed_dim": 16,
            "time_embed_dim": 8,
            "condition_dim": 4,
            "pos_embed_max_size": 8,
            "sample_size": 4,
            "rope_axes_dim": (8, 8),
        },
        _IMAGE,
        lambda text: {
            name: torch.tensor([[64.0, 64.0]])
            for name in ("original_size", "target_size", "crop_coords")
        },
    ),
}
