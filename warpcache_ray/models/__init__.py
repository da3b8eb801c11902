"""Adapters for diffusers' transformers, one file each."""

from __future__ import annotations

from torch import nn

from warpcache_ray.models import cosmos, hunyuan_video, wan
from warpcache_ray.models.adapter import ModelAdapter

ADAPTERS: dict[str, ModelAdapter] = {
    adapter.transformer: adapter for adapter in (wan.ADAPTER, hunyuan_video.ADAPTER, cosmos.ADAPTER)
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
