"""The policies, one file each."""

from __future__ import annotations

from warpcache_ray.core.policies.first_block import FirstBlock
from warpcache_ray.core.policies.interval import Interval
from warpcache_ray.core.policies.never import Never
from warpcache_ray.core.policies.worldcache import WorldCache
from warpcache_ray.core.policy import Policy

POLICIES: dict[str, type[Policy]] = {p.name: p for p in (Never, Interval, FirstBlock, WorldCache)}
