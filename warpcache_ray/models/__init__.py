"""Adapters for diffusers' transformers, one file each."""

from __future__ import annotations

from torch import nn

from warpcache_ray.models import (
    cogvideox,
    cosmos,
    cross_attention,
    flux,
    hunyuan_video,
    kandinsky,
    ltx,
    mochi,
    qwen_image,
    stable_diffusion,
    wan,
)
from warpcache_ray.models.adapter import ModelAdapter

ADAPTERS: dict[str, ModelAdapter] = {
    adapter.transformer: adapter
    for adapter in (
        wan.ADAPTER,
        wan.VACE,
        wan.CHRONOEDIT,
        wan.SKYREELS,
        hunyuan_video.ADAPTER,
        hunyuan_video.V15,
        hunyuan_video.FRAMEPACK,
        hunyuan_video.IMAGE,
        cosmos.ADAPTER,
        ltx.ADAPTER,
        ltx.LTX2,
        cogvideox.ADAPTER,
        cogvideox.COGVIEW4,
        mochi.ADAPTER,
        kandinsky.ADAPTER,
        flux.ADAPTER,
        flux.FLUX2,
        flux.CHROMA,
        flux.BRIA,
        flux.OVIS,
        flux.AURAFLOW,
        qwen_image.ADAPTER,
        stable_diffusion.ADAPTER,
        cross_attention.ALLEGRO,
        cross_attention.SANA_VIDEO,
        cross_attention.SANA,
        cross_attention.PIXART,
        cross_attention.HUNYUAN_DIT,
        cross_attention.LUMINA2,
    )
}


def adapter_for(transformer: nn.Module) -> ModelAdapter | None:
    """The adapter of a transformer's class or of one it derives from; None if there is none."""
    names = (kind.__name__ for kind in type(transformer).__mro__)
    return next((ADAPTERS[name] for name in names if name in ADAPTERS), None)


def class_name(transformer: nn.Module) -> str:
    """The name of a transformer's class in diffusers, also where it is a class derived from that one."""
    kinds = type(transformer).__mro__
    own = (kind.__name__ for kind in kinds if kind.__module__.startswith("diffusers."))
    return next(own, type(transformer).__name__)
