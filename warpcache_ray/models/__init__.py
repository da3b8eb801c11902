"""Adapters for diffusers' transformers, one file each."""

from __future__ import annotations

from torch import nn

from warpcache_ray.errors import InvalidRequest
from warpcache_ray.models import hunyuan_video, wan
from warpcache_ray.models.adapter import ModelAdapter

ADAPTERS: dict[str, ModelAdapter] = {
    adapter.transformer: adapter for adapter in (wan.ADAPTER, hunyuan_video.ADAPTER)
}


def adapter_for(transformer: nn.Module) -> ModelAdapter:
    """The adapter of a transformer's class or of one it derives from.

    Raises:
        InvalidRequest: no adapter; the message lists what exists.
    """
    for kind in type(transformer).__mro__:
        if kind.__name__ in ADAPTERS:
            return ADAPTERS[kind.__name__]
    raise InvalidRequest(
        f"no cache adapter for {type(transformer).__name__}; there are: {', '.join(ADAPTERS)}",
        "transformer",
    )
