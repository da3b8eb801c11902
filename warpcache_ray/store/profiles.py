"""What a service profiles by itself: for which settings, on which prompts, and how far that is."""

from __future__ import annotations

import json
from typing import Any

from redis.asyncio import Redis

from warpcache_ray.store.connection import answers
from warpcache_ray.store.keys import Keys


class ProfileStore:
    """One plan per group of requests, by the group's name; JSON, as its user has it. Every method raises Unavailable
    when the server can't serve."""

    def __init__(self, redis: Redis, application: str) -> None:
        self._redis = redis
        self._profiles = Keys(application).profiles

    async def plans(self) -> dict[str, dict[str, Any]]:
        """All of them."""
        with answers():
            found = await self._redis.hgetall(self._profiles)
        return {str(group): json.loads(plan) for group, plan in found.items()}

    async def plan(self, group: str, plan: dict[str, Any]) -> None:
        """Keeps a group's plan, unless it has one."""
        with answers():
            await self._redis.hsetnx(self._profiles, group, json.dumps(plan))

    async def end(self, group: str, plan: dict[str, Any]) -> None:
        """Keeps what has become of a plan in its place."""
        with answers():
            await self._redis.hset(self._profiles, group, json.dumps(plan))
