"""What the store of profiles keeps to, on each server."""

from redis.asyncio import Redis

from warpcache_ray.store.profiles import ProfileStore


async def test_a_plan_is_made_once(redis: Redis) -> None:
    """The first one stays until its end is told, over restarts and for all who ask."""
    store, another = ProfileStore(redis, "app"), ProfileStore(redis, "app")
    assert await store.plans() == {}
    await store.plan("a", {"prompts": ["猫"]})
    await another.plan("a", {"prompts": ["other"]})
    await another.plan("b", {})
    assert await store.plans() == {"a": {"prompts": ["猫"]}, "b": {}}
    await store.end("a", {"end": "profiled"})
    assert (await another.plans())["a"] == {"end": "profiled"}
    assert await ProfileStore(redis, "other").plans() == {}
