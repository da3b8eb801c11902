"""Whole pipelines around the toys, one of each family that the service makes videos or images with: real classes,
random weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import diffusers as d
import torch
from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video_image2video import (
    DEFAULT_PROMPT_TEMPLATE,
)
from tiny_text import WIDTH, bert, clip, llava, qwen, second, t5
from torch import nn
from toys import TOYS
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

_UNIPC = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}


def _toy(name: str, **changes: Any) -> nn.Module:
    toy = TOYS[name]
    return replace(toy, config={**toy.config, **changes}).build()


def _unipc() -> Any:
    return d.UniPCMultistepScheduler(**_UNIPC)


def _wan_vae(**changes: Any) -> Any:
    stats = {"latents_mean": [0.0] * 4, "latents_std": [1.0] * 4}
    sizes = {"base_dim": 4, "z_dim": 4, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1}
    return d.AutoencoderKLWan(**{**sizes, **stats, **changes}).eval()


def _hunyuan_vae() -> Any:
    return d.AutoencoderKLHunyuanVideo(
        latent_channels=4,
        block_out_channels=(4, 4, 4, 4),
        layers_per_block=1,
        norm_num_groups=2,
        mid_block_add_attention=False,
    ).eval()


def _image_vae(channels: int) -> Any:
    return d.AutoencoderKL(
        latent_channels=channels,
        block_out_channels=(4, 4, 4, 4),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=2,
        shift_factor=0.1,
    ).eval()


def _wan22() -> Any:
    """Two experts, the first down to a boundary."""
    experts = {name: _toy("Wan 2.1") for name in ("transformer", "transformer_2")}
    text = t5(multilingual=True)
    return d.WanPipeline(vae=_wan_vae(), scheduler=_unipc(), boundary_ratio=0.7, **experts, **text)


def _wan22_ti2v() -> Any:
    """Each token has its timestep; the VAE puts patches of pixels together."""
    vae = _wan_vae(patch_size=2, in_channels=12, out_channels=12, scale_factor_spatial=16)
    toy, text = _toy("Wan 2.2 TI2V"), t5(multilingual=True)
    return d.WanPipeline(
        vae=vae, transformer=toy, scheduler=_unipc(), expand_timesteps=True, **text
    )


def _wan_i2v() -> Any:
    sizes = {"hidden_size": WIDTH, "intermediate_size": 32, "num_attention_heads": 2}
    vision = CLIPVisionConfig(num_hidden_layers=2, image_size=32, patch_size=16, **sizes)
    crop = {"height": 32, "width": 32}
    return d.WanImageToVideoPipeline(
        vae=_wan_vae(),
        image_encoder=CLIPVisionModel(vision).eval(),
        image_processor=CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=crop),
        transformer=_toy("Wan 2.1 I2V"),
        scheduler=_unipc(),
        **t5(multilingual=True),
    )


def _hunyuan_i2v() -> Any:
    """The image stands beside the latent, and is described to the denoiser by a model that sees it."""
    return d.HunyuanVideoImageToVideoPipeline(
        vae=_hunyuan_vae(),
        transformer=_toy("HunyuanVideo I2V"),
        scheduler=_euler(),
        **llava(DEFAULT_PROMPT_TEMPLATE["template"]),
        **second(clip()),
    )


def _skyreels() -> Any:
    toy, text = _toy("SkyReels-V2"), t5(multilingual=True)
    return d.SkyReelsV2Pipeline(vae=_wan_vae(), transformer=toy, scheduler=_unipc(), **text)


def _ltx() -> Any:
    vae = d.AutoencoderKLLTXVideo(
        latent_channels=4,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
    ).eval()
    return d.LTXPipeline(vae=vae, transformer=_toy("LTX-Video"), scheduler=_euler(), **t5(128))


def _euler() -> Any:
    return d.FlowMatchEulerDiscreteScheduler(shift=3.0)


def _cogvideox() -> Any:
    vae = d.AutoencoderKLCogVideoX(
        block_out_channels=(4, 4, 4, 4),
        latent_channels=4,
        norm_num_groups=2,
        layers_per_block=1,
        temporal_compression_ratio=4,
    ).eval()
    toy = _toy("CogVideoX", max_text_seq_length=226)
    return d.CogVideoXPipeline(
        vae=vae, transformer=toy, scheduler=d.CogVideoXDPMScheduler(), **t5()
    )


def _mochi() -> Any:
    vae = d.AutoencoderKLMochi(
        encoder_block_out_channels=(32, 32, 32, 32),
        decoder_block_out_channels=(32, 32, 32, 32),
        layers_per_block=(1, 1, 1, 1, 1),
        add_attention_block=(False,) * 5,
    ).eval()
    toy = _toy("Mochi", in_channels=12, max_sequence_length=256)
    return d.MochiPipeline(vae=vae, transformer=toy, scheduler=_euler(), **t5())


def _hunyuan15() -> Any:
    from diffusers.pipelines.hunyuan_video1_5 import pipeline_hunyuan_video1_5 as module

    vae = d.AutoencoderKLHunyuanVideo15(
        latent_channels=4, block_out_channels=(8, 8, 8, 8, 8), layers_per_block=1
    ).eval()
    text = qwen("Describe the video by detailing the following aspects", whole=False)
    return module.HunyuanVideo15Pipeline(
        vae=vae,
        transformer=_toy("HunyuanVideo 1.5"),
        scheduler=_euler(),
        guider=d.ClassifierFreeGuidance(guidance_scale=6.0),
        **text,
        **second(t5(256)),
    )


def _kandinsky() -> Any:
    return d.Kandinsky5T2VPipeline(
        vae=_hunyuan_vae(),
        transformer=_toy("Kandinsky 5", in_text_dim2=WIDTH),
        scheduler=_euler(),
        **qwen(""),
        **second(clip()),
    )


def _flux() -> Any:
    return d.FluxPipeline(
        vae=_image_vae(2),
        transformer=_toy("FLUX.1"),
        scheduler=_euler(),
        **clip(),
        **second(t5()),
    )


def _qwen_image() -> Any:
    stats = {"latents_mean": [0.0] * 2, "latents_std": [1.0] * 2}
    sizes = {"base_dim": 4, "z_dim": 2, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1}
    vae = d.AutoencoderKLQwenImage(**sizes, **stats).eval()
    return d.QwenImagePipeline(
        vae=vae, transformer=_toy("Qwen-Image"), scheduler=_euler(), **qwen("")
    )


def _sd3() -> Any:
    toy = _toy("Stable Diffusion 3", pooled_projection_dim=2 * WIDTH)
    return d.StableDiffusion3Pipeline(
        vae=_image_vae(4),
        transformer=toy,
        scheduler=_euler(),
        **clip(projected=True),
        **second(clip(projected=True)),
        **second(t5(), 3),
    )


def _hunyuandit() -> Any:
    return d.HunyuanDiTPipeline(
        vae=_image_vae(4),
        transformer=_toy("HunyuanDiT", text_len=77, text_len_t5=256),
        scheduler=d.DDPMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        **bert(),
        **second(t5(256)),
    )


TINY: dict[str, Callable[[], Any]] = {
    "wan22": _wan22,
    "wan22-ti2v": _wan22_ti2v,
    "wan-i2v": _wan_i2v,
    "hunyuan-i2v": _hunyuan_i2v,
    "skyreels": _skyreels,
    "hunyuan15": _hunyuan15,
    "ltx": _ltx,
    "cogvideox": _cogvideox,
    "mochi": _mochi,
    "kandinsky": _kandinsky,
    "flux": _flux,
    "qwen-image": _qwen_image,
    "sd3": _sd3,
    "hunyuandit": _hunyuandit,
}
"""By the name of the family's configuration."""


def build(name: str) -> Any:
    """The pipeline, the same at every call."""
    torch.manual_seed(0)
    return TINY[name]()
