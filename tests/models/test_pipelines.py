"""Whole pipelines of diffusers around the toys: solvers without a count of steps, batched branches, announced ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLCogVideoX,
    CogVideoXDDIMScheduler,
    CogVideoXPipeline,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    StableDiffusion3Pipeline,
)
from torch import Tensor
from toy import TEXT
from toys import TOYS

from warpcache_ray import disable_dit_cache, dit_cache_stats, enable_dit_cache
from warpcache_ray.models import ADAPTERS

_NO_TEXT: dict[str, Any] = {"text_encoder": None, "tokenizer": None}
_NO_TEXT_2: dict[str, Any] = {**_NO_TEXT, "text_encoder_2": None, "tokenizer_2": None}


def _embeds(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def _image_vae(channels: int) -> AutoencoderKL:
    return AutoencoderKL(latent_channels=channels, block_out_channels=(4,), norm_num_groups=2)


def _cogvideox() -> tuple[Any, dict[str, Any]]:
    vae = AutoencoderKLCogVideoX(
        block_out_channels=(4, 4, 4, 4),
        latent_channels=4,
        norm_num_groups=2,
        layers_per_block=1,
        temporal_compression_ratio=4,
    )
    toy, scheduler = TOYS["CogVideoX"].build(), CogVideoXDDIMScheduler()
    pipe = CogVideoXPipeline(vae=vae, transformer=toy, scheduler=scheduler, **_NO_TEXT)
    text = {n: _embeds(1, TEXT, 16) * s for n, s in _both("prompt_embeds")}
    return pipe, {**text, "height": 32, "width": 32, "num_frames": 5}


def _sd3() -> tuple[Any, dict[str, Any]]:
    pipe = StableDiffusion3Pipeline(
        vae=_image_vae(4),
        transformer=TOYS["Stable Diffusion 3"].build(),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        text_encoder_3=None,
        tokenizer_3=None,
        **_NO_TEXT_2,
    )
    text = {n: _embeds(1, TEXT, 16) * s for n, s in _both("prompt_embeds")}
    pooled = {n: _embeds(1, 16) * s for n, s in _both("pooled_prompt_embeds")}
    return pipe, {**text, **pooled, "height": 4, "width": 4}


def _flux() -> tuple[Any, dict[str, Any]]:
    pipe = FluxPipeline(
        vae=_image_vae(2),
        transformer=TOYS["FLUX.1"].build(),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        **_NO_TEXT_2,
    )
    text = {n: _embeds(1, TEXT, 16) * s for n, s in _both("prompt_embeds")}
    pooled = {n: _embeds(1, 16) * s for n, s in _both("pooled_prompt_embeds")}
    return pipe, {**text, **pooled, "height": 8, "width": 8, "true_cfg_scale": 2.0}


def _both(name: str) -> tuple[tuple[str, float], tuple[str, float]]:
    return (name, 1.0), (f"negative_{name}", -1.0)


PIPELINES: dict[str, tuple[Callable[[], Any], set[str]]] = {
    "CogVideoX": (_cogvideox, {"cond_uncond"}),
    "Stable Diffusion 3": (_sd3, {"cond_uncond"}),
    "FLUX.1": (_flux, {"cond", "uncond"}),
}
"""How each is built, and the branches that it calls: both at once, or one after the other."""


@pytest.mark.parametrize("name", PIPELINES)
def test_pipelines_are_cached(name: str) -> None:
    """Off and `never` give the same bits; steps are counted, branches named, and a policy skips at both sites."""
    build, branches = PIPELINES[name]
    pipe, arguments = build()
    pipe.set_progress_bar_config(disable=True)

    def run() -> Tensor:
        generator = torch.Generator().manual_seed(0)
        how = {"num_inference_steps": 6, "output_type": "latent", "return_dict": False}
        made: Tensor = pipe(generator=generator, **arguments, **how)[0]
        return made

    plain = run()
    enable_dit_cache(pipe, "never")
    assert torch.equal(run(), plain)
    records = dit_cache_stats(pipe).records
    assert {r.branch for r in records} == branches
    for branch in branches:
        assert [r.step for r in records if r.branch == branch] == list(range(6))
    disable_dit_cache(pipe)
    for site in ("output", "blocks"):
        enable_dit_cache(pipe, "taylorseer", site=site, interval=3)
        made = run()
        assert made.isfinite().all()
        assert dit_cache_stats(pipe).hits > 0
        assert torch.equal(run(), made)
        disable_dit_cache(pipe)
    assert type(pipe.transformer).__name__ in ADAPTERS
