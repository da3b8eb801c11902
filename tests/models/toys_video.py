"""The toys that make videos."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from toy import CROSS, HEAD, HEADS, TEXT, WIDTH, Toy, mask, pooled


def _hunyuan(text: Tensor) -> dict[str, Any]:
    return {
        "encoder_attention_mask": mask(text),
        "guidance": torch.tensor([6000.0]),
        **pooled(16)(text),
    }


def _framepack(text: Tensor) -> dict[str, Any]:
    history = torch.linspace(-1, 1, 4 * 4 * 4).reshape(1, 4, 1, 4, 4).to(text.dtype)
    return {
        **_hunyuan(text),
        "image_embeds": text.new_ones(1, 3, 16),
        "indices_latents": torch.arange(7, 9),
        "latents_clean": history,
        "indices_latents_clean": torch.tensor([0]),
        "latents_history_2x": history.repeat(1, 1, 2, 1, 1),
        "indices_latents_history_2x": torch.arange(1, 3),
        "latents_history_4x": history.repeat(1, 1, 4, 1, 1),
        "indices_latents_history_4x": torch.arange(3, 7),
    }


def _hunyuan_15(text: Tensor) -> dict[str, Any]:
    return {
        "encoder_attention_mask": mask(text),
        "encoder_hidden_states_2": text[:, :2],
        "encoder_attention_mask_2": torch.ones(1, 2),
        "image_embeds": text.new_zeros(1, 3, 16),
    }


def _ltx2(text: Tensor) -> dict[str, Any]:
    sound = torch.linspace(-1, 1, 3 * 4).reshape(1, 3, 4).to(text.dtype)
    sizes = {"num_frames": 2, "height": 2, "width": 2, "audio_num_frames": 3}
    sigma = torch.tensor([500.0]).to(text.dtype)
    return {
        "audio_hidden_states": sound,
        "audio_encoder_hidden_states": text,
        "encoder_attention_mask": mask(text),
        "audio_encoder_attention_mask": mask(text),
        "sigma": sigma,
        **sizes,
    }


def _kandinsky(text: Tensor) -> dict[str, Any]:
    rope = [torch.arange(n) for n in (2, 2, 2)]
    return {"visual_rope_pos": rope, "text_rope_pos": torch.arange(TEXT), **pooled(8)(text)}


_WAN = {
    **CROSS,
    "patch_size": (1, 2, 2),
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 16,
    "freq_dim": 32,
    "ffn_dim": 64,
    "num_layers": 4,
    "rope_max_seq_len": 32,
}
_HUNYUAN = {
    **CROSS,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 2,
    "num_single_layers": 2,
    "num_refiner_layers": 1,
    "patch_size": 2,
    "patch_size_t": 1,
    "guidance_embeds": True,
    "text_embed_dim": 16,
    "pooled_projection_dim": 16,
    "rope_axes_dim": (4, 6, 6),
    "mlp_ratio": 2.0,
}
_COSMOS = {
    **CROSS,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 4,
    "mlp_ratio": 2,
    "text_embed_dim": 16,
    "adaln_lora_dim": 4,
    "max_size": (8, 32, 32),
    "concat_padding_mask": False,
}
_COGVIDEOX = {
    **CROSS,
    "in_channels": 4,
    "out_channels": 4,
    "time_embed_dim": 8,
    "text_embed_dim": 16,
    "num_layers": 4,
    "sample_width": 4,
    "sample_height": 4,
    "sample_frames": 5,
    "max_text_seq_length": TEXT,
}
_KANDINSKY = {
    "in_visual_dim": 4,
    "in_text_dim": 16,
    "in_text_dim2": 8,
    "time_dim": 16,
    "out_visual_dim": 4,
    "model_dim": WIDTH,
    "ff_dim": 64,
    "num_text_blocks": 1,
    "num_visual_blocks": 4,
    "axes_dims": (4, 6, 6),
}
_VIDEO = (1, 4, 2, 4, 4)

TOYS: dict[str, Toy] = {
    "Wan 2.1": Toy("WanTransformer3DModel", _WAN, _VIDEO),
    "Wan 2.1 I2V": Toy(
        "WanTransformer3DModel",
        {**_WAN, "in_channels": 12, "image_dim": 16, "added_kv_proj_dim": WIDTH},
        (1, 12, 2, 4, 4),
        lambda text: {"encoder_hidden_states_image": text[:, :3] + 1},
        channels=4,
    ),
    "Wan 2.2 TI2V": Toy(
        "WanTransformer3DModel",
        _WAN,
        _VIDEO,
        # Each token has a timestep; those of the image that was given have none.
        timesteps=lambda t: torch.cat((torch.zeros(1, 4), t.expand(1, 4)), 1),
    ),
    "Wan-VACE": Toy(
        "WanVACETransformer3DModel",
        {**_WAN, "vace_layers": [0, 2], "vace_in_channels": 6},
        _VIDEO,
        lambda text: {"control_hidden_states": text.new_ones(1, 6, 2, 4, 4)},
    ),
    "ChronoEdit": Toy("ChronoEditTransformer3DModel", _WAN, _VIDEO),
    "SkyReels-V2": Toy("SkyReelsV2Transformer3DModel", _WAN, _VIDEO),
    "SkyReels-V2 DF": Toy(
        "SkyReelsV2Transformer3DModel",
        _WAN,
        _VIDEO,
        lambda text: {"enable_diffusion_forcing": True},
        timesteps=lambda t: t.expand(1, 2),
    ),
    "HunyuanVideo": Toy("HunyuanVideoTransformer3DModel", _HUNYUAN, _VIDEO, _hunyuan),
    "HunyuanVideo I2V": Toy(
        "HunyuanVideoTransformer3DModel",
        {**_HUNYUAN, "in_channels": 9, "image_condition_type": "latent_concat"},
        (1, 9, 2, 4, 4),
        _hunyuan,
        channels=4,
    ),
    "HunyuanVideo I2V, token replace": Toy(
        "HunyuanVideoTransformer3DModel",
        {**_HUNYUAN, "image_condition_type": "token_replace"},
        _VIDEO,
        _hunyuan,
    ),
    "HunyuanVideo 1.5": Toy(
        "HunyuanVideo15Transformer3DModel",
        {
            **CROSS,
            "in_channels": 9,
            "out_channels": 4,
            "num_layers": 4,
            "num_refiner_layers": 1,
            "mlp_ratio": 2.0,
            "text_embed_dim": 16,
            "text_embed_2_dim": 16,
            "image_embed_dim": 16,
            "rope_axes_dim": (4, 6, 6),
        },
        (1, 9, 2, 2, 2),
        _hunyuan_15,
        channels=4,
    ),
    "Framepack": Toy(
        "HunyuanVideoFramepackTransformer3DModel",
        {**_HUNYUAN, "has_image_proj": True, "image_proj_dim": 16, "has_clean_x_embedder": True},
        _VIDEO,
        _framepack,
    ),
    "Cosmos-Predict 1": Toy(
        "CosmosTransformer3DModel",
        _COSMOS,
        _VIDEO,
    ),
    "Cosmos-Predict 2 V2W": Toy(
        "CosmosTransformer3DModel",
        {**_COSMOS, "in_channels": 5, "extra_pos_embed_type": None},
        _VIDEO,
        lambda text: {"condition_mask": text.new_ones(1, 1, 2, 4, 4)},
        # Frames that are given have a timestep of their own.
        timesteps=lambda t: torch.stack((t * 0, t)).reshape(1, 1, 2, 1, 1),
    ),
    "LTX-Video": Toy(
        "LTXVideoTransformer3DModel",
        {
            **CROSS,
            "in_channels": 4,
            "out_channels": 4,
            "cross_attention_dim": WIDTH,
            "num_layers": 4,
            "caption_channels": 16,
        },
        (1, 8, 4),
        lambda text: {
            "encoder_attention_mask": mask(text),
            "num_frames": 2,
            "height": 2,
            "width": 2,
        },
    ),
    "LTX-2": Toy(
        "LTX2VideoTransformer3DModel",
        {
            **CROSS,
            "in_channels": 4,
            "out_channels": 4,
            "cross_attention_dim": WIDTH,
            "audio_in_channels": 4,
            "audio_out_channels": 4,
            "audio_num_attention_heads": HEADS,
            "audio_attention_head_dim": 8,
            "audio_cross_attention_dim": 16,
            "num_layers": 4,
            "caption_channels": 16,
            "rope_double_precision": False,
        },
        (1, 8, 4),
        _ltx2,
    ),
    "CogVideoX": Toy(
        "CogVideoXTransformer3DModel",
        _COGVIDEOX,
        (1, 2, 4, 4, 4),
    ),
    "CogVideoX I2V": Toy(
        "CogVideoXTransformer3DModel",
        {**_COGVIDEOX, "in_channels": 8},
        (1, 2, 8, 4, 4),
        channels=4,
    ),
    "Mochi": Toy(
        "MochiTransformer3DModel",
        {
            **CROSS,
            "num_layers": 4,
            "pooled_projection_dim": 16,
            "in_channels": 4,
            "text_embed_dim": 16,
            "time_embed_dim": 4,
            "max_sequence_length": TEXT,
        },
        _VIDEO,
        lambda text: {"encoder_attention_mask": mask(text).bool()},
    ),
    "Kandinsky 5": Toy(
        "Kandinsky5Transformer3DModel",
        _KANDINSKY,
        (1, 2, 4, 4, 4),
        _kandinsky,
    ),
    "Kandinsky 5 I2V": Toy(
        "Kandinsky5Transformer3DModel",
        {**_KANDINSKY, "visual_cond": True},
        (1, 2, 4, 4, 9),
        _kandinsky,
        channels=4,
    ),
    "Allegro": Toy(
        "AllegroTransformer3DModel",
        {
            **CROSS,
            "num_layers": 4,
            "cross_attention_dim": WIDTH,
            "sample_height": 4,
            "sample_width": 4,
            "sample_frames": 2,
            "caption_channels": 16,
        },
        _VIDEO,
    ),
    "Sana-Video": Toy(
        "SanaVideoTransformer3DModel",
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
        _VIDEO,
    ),
}
