"""WarpCache-Ray: Diffusion-Transformer video models on Ray Serve, made cheaper by caching between denoising steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from warpcache_ray.engine.install import disable_dit_cache, dit_cache_stats, enable_dit_cache

__version__ = "0.1.0"
__all__ = ["__version__", "disable_dit_cache", "dit_cache_stats", "enable_dit_cache"]


def __getattr__(name: str) -> Any:
    # Loaded on first use: the ingress and the command line start without torch.
    if name in __all__:
        from warpcache_ray.engine import install

        return getattr(install, name)
    raise AttributeError(name)
