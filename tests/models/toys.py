"""Every adapted transformer at toy size with random weights, and a loop that denoises with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import diffusers
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn

HEADS, HEAD, WIDTH, TEXT = 2, 16, 32, 5
CROSS = {"num_attention_heads": HEADS, "attention_head_dim": HEAD}
STEPS = 6

Extra = Callable[[Tensor], dict[str, Any]]
"""Further arguments of a call, made from its text."""


@dataclass(frozen=True)
class Toy:
    """`kind`, a class of diffusers, with this configuration, denoises the first `channels` along the latent's channel
    axis; the others are conditioning. `given` are arguments of every call but latent, timestep and text, whose width is
    `text`."""

    kind: str
    config: dict[str, Any]
    latent: tuple[int, ...]
    given: Extra = lambda text: {}
    text: int = 16
    channels: int | None = None
    timesteps: Callable[[Tensor], Tensor] = field(default=lambda t: t.expand(1))

    def build(self) -> nn.Module:
        """The transformer, the same at every call. What models start at zero isn't: nothing would change."""
        torch.manual_seed(0)
        transformer: nn.Module = getattr(diffusers, self.kind)(**self.config)
        for weight in transformer.parameters():
            if not weight.any():
                nn.init.normal_(weight, std=0.1)
        return transformer.eval()


class Loop:
    """A transformer, a scheduler, and a loop that calls cond, then uncond: a pipeline that announces nothing."""

    def __init__(self, toy: Toy, transformer: nn.Module, guided: bool = True) -> None:
        self.toy = toy
        self.transformer = transformer
        self.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
        self.do_classifier_free_guidance = guided
        self.guidance_scale = 3.0
        self.after_step: Callable[[int], None] = lambda index: None

    @torch.no_grad()
    def __call__(self, seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        dtype = next(self.transformer.parameters()).dtype
        random = lambda *shape: torch.randn(*shape, generator=generator).to(dtype)  # noqa: E731
        latent, texts = random(*self.toy.latent), [random(1, TEXT, self.toy.text) for _ in range(2)]
        self.scheduler.set_timesteps(STEPS)
        for index, timestep in enumerate(self.scheduler.timesteps):
            cond, *uncond = (
                self.call(latent, timestep, text)
                for text in texts[: 1 + self.do_classifier_free_guidance]
            )
            out = cond + self.guidance_scale * (cond - uncond[0]) if uncond else cond
            latent = self._stepped(latent, out, timestep)
            self.after_step(index)
        return latent

    def call(self, latent: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        """One denoiser call."""
        out = self.transformer(
            hidden_states=latent,
            timestep=self.toy.timesteps(timestep).to(latent.dtype),
            encoder_hidden_states=text,
            return_dict=False,
            **self.toy.given(text),
        )
        return out if isinstance(out, Tensor) else out[0]

    def _stepped(self, latent: Tensor, out: Tensor, timestep: Tensor) -> Tensor:
        sizes = enumerate(zip(latent.shape, out.shape, strict=True))
        axis = next((axis for axis, (given, made) in sizes if given != made), None)
        if axis is None:
            return self.scheduler.step(out, timestep, latent, return_dict=False)[0]
        # Variances that the model gives beside, or conditioning that it was given beside.
        count = min(latent.shape[axis], out.shape[axis])
        noisy, out = latent.narrow(axis, 0, count), out.narrow(axis, 0, count)
        stepped = self.scheduler.step(out, timestep, noisy, return_dict=False)[0]
        rest = latent.narrow(axis, count, latent.shape[axis] - count)
        return torch.cat((stepped, rest), axis)


def _mask(text: Tensor) -> Tensor:
    return torch.ones(1, text.shape[1])


def _ids(count: int, width: int) -> Tensor:
    return torch.stack([torch.arange(count, dtype=torch.float32)] * width, -1)


def _pooled(width: int) -> Extra:
    return lambda text: {"pooled_projections": text.new_zeros(1, width) + text.mean()}


def _flux(width: int = 3, pooled: int | None = None, guidance: bool = False) -> Extra:
    def given(text: Tensor) -> dict[str, Any]:
        arguments = {"img_ids": _ids(16, width), "txt_ids": _ids(TEXT, width)}
        if pooled:
            arguments["pooled_projections"] = text.new_zeros(1, pooled) + text.mean()
        if guidance:
            arguments["guidance"] = torch.ones(1)
        return arguments

    return given


def _hunyuan(text: Tensor) -> dict[str, Any]:
    return {
        "encoder_attention_mask": _mask(text),
        "guidance": torch.tensor([6000.0]),
        **_pooled(16)(text),
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
        "encoder_attention_mask": _mask(text),
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
        "encoder_attention_mask": _mask(text),
        "audio_encoder_attention_mask": _mask(text),
        "sigma": sigma,
        **sizes,
    }


def _kandinsky(text: Tensor) -> dict[str, Any]:
    rope = [torch.arange(n) for n in (2, 2, 2)]
    return {"visual_rope_pos": rope, "text_rope_pos": torch.arange(TEXT), **_pooled(8)(text)}


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
_FLUX = {
    **CROSS,
    "in_channels": 8,
    "num_layers": 2,
    "num_single_layers": 2,
    "joint_attention_dim": 16,
    "axes_dims_rope": (4, 6, 6),
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
_VIDEO, _IMAGE, _PACKED = (1, 4, 2, 4, 4), (1, 4, 4, 4), (1, 16, 8)

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
        lambda text: {"encoder_attention_mask": _mask(text)},
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
            "encoder_attention_mask": _mask(text),
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
        lambda text: {"encoder_attention_mask": _mask(text).bool()},
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
    "FLUX.1": Toy(
        "FluxTransformer2DModel",
        {**_FLUX, "pooled_projection_dim": 16, "guidance_embeds": True},
        _PACKED,
        _flux(pooled=16, guidance=True),
    ),
    "FLUX.1 Fill": Toy(
        "FluxTransformer2DModel",
        {**_FLUX, "pooled_projection_dim": 16, "in_channels": 20, "out_channels": 8},
        (1, 16, 20),
        _flux(pooled=16),
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
            "encoder_hidden_states_mask": _mask(text).long(),
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
        _pooled(16),
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
        lambda text: {"encoder_attention_mask": _mask(text).bool()},
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
"""By the name of the model that is built like it."""
