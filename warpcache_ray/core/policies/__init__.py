"""The policies, one file each."""

from __future__ import annotations

from warpcache_ray.core.policies.auto import Auto
from warpcache_ray.core.policies.dicache import DiCache
from warpcache_ray.core.policies.easycache import EasyCache
from warpcache_ray.core.policies.first_block import FirstBlock
from warpcache_ray.core.policies.guidance import Guidance
from warpcache_ray.core.policies.interval import Interval
from warpcache_ray.core.policies.lemica import LeMiCa
from warpcache_ray.core.policies.magcache import MagCache
from warpcache_ray.core.policies.never import Never
from warpcache_ray.core.policies.taylorseer import TaylorSeer
from warpcache_ray.core.policies.teacache import TeaCache
from warpcache_ray.core.policies.warpcache import WarpCache
from warpcache_ray.core.policies.worldcache import WorldCache
from warpcache_ray.core.policy import Policy

POLICIES: dict[str, type[Policy]] = {
    policy.name: policy
    for policy in (
        Never,
        Interval,
        FirstBlock,
        WorldCache,
        WarpCache,
        DiCache,
        TeaCache,
        EasyCache,
        MagCache,
        TaylorSeer,
        LeMiCa,
        Guidance,
        Auto,
    )
}
