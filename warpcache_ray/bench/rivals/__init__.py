"""The contenders' means: this project's policies, the peers' own libraries, and what needs no library."""

from __future__ import annotations

from warpcache_ray.bench.rivals.cache_dit import cache_dit
from warpcache_ray.bench.rivals.diffusers_hooks import diffusers_hooks
from warpcache_ray.bench.rivals.made import Kind
from warpcache_ray.bench.rivals.ours import policy
from warpcache_ray.bench.rivals.plain import control, fewer_steps

KINDS: dict[str, Kind] = {
    "policy": policy,
    "fewer_steps": fewer_steps,
    "control": control,
    "cache_dit": cache_dit,
    "diffusers": diffusers_hooks,
}
"""By the name that contenders files use."""
