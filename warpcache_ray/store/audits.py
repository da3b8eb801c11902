"""What audits have counted, for each version of a policy, and what came of it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis

from warpcache_ray.store.connection import answers
from warpcache_ray.store.events import PUSH, Event, arguments
from warpcache_ray.store.keys import Keys

COUNT = """
if redis.call('EXISTS', KEYS[1]) == 0 then return false end
if redis.call('HSETNX', KEYS[1], 'audited', ARGV[1]) == 1 then
    redis.call('SADD', KEYS[3], ARGV[2])
    redis.call('HINCRBY', KEYS[2], 'requests', 1)
    redis.call('HINCRBY', KEYS[2], 'misses', ARGV[3])
end
return redis.call('HMGET', KEYS[2], 'requests', 'misses', 'broken')
"""
"""The mark is part of the job's record and goes with it: whoever audits it again, or sends this again after a broken
connection, counts nothing."""

TELL = f"""{PUSH}
local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
if not (last and last[2][2] == ARGV[1] and last[2][4] == ARGV[2]) then
    push(KEYS[1], ARGV[1], ARGV[2])
end
"""
"""Sent again after a broken connection, it finds what it has told."""


@dataclass(frozen=True, slots=True)
class Tally:
    """Audited requests of a version, and how many missed. `broken`: its promise was found to be."""

    requests: int = 0
    misses: int = 0
    broken: bool = False


class AuditStore:
    """The tallies of one application. Every method raises Unavailable when the server can't serve."""

    def __init__(self, redis: Redis, application: str) -> None:
        self._redis = redis
        self._keys = Keys(application)
        self._count_script = redis.register_script(COUNT)
        self._tell_script = redis.register_script(TELL)

    async def audited(self, job: str) -> dict[str, Any] | None:
        """What a job's audit found; None if it wasn't audited, or there is no such job."""
        with answers():
            found: Any = await self._redis.hget(self._keys.job(job), "audited")
        return None if found is None else json.loads(found)

    async def count(
        self, job: str, key: str, version: int, kept: bool, found: dict[str, Any]
    ) -> Tally | None:
        """Counts the audit of a job that a version has served, once, and notes what it found; the version's tally then.
        None: there is no such job any more, nothing was counted."""
        with answers():
            tally = await self._count_script(
                keys=[self._keys.job(job), self._keys.tally(key, version), self._keys.tallies],
                args=[json.dumps(found | {"kept": kept}), f"{key} {version}", int(not kept)],
            )
        return None if tally is None else _tally(tally)

    async def tally(self, key: str, version: int) -> Tally:
        """What was counted for a version."""
        with answers():
            # Any: the client's types don't know that it decodes.
            found: Any = await self._redis.hmget(
                self._keys.tally(key, version), ["requests", "misses", "broken"]
            )
        return _tally(found)

    async def versions(self) -> list[tuple[str, int]]:
        """All that were ever audited: keys and versions."""
        with answers():
            names = sorted(map(str, await self._redis.smembers(self._keys.tallies)))
        return [(key, int(version)) for key, version in (n.rsplit(" ", 1) for n in names)]

    async def condemn(self, key: str, version: int) -> None:
        """Notes for good that a version's promise is broken."""
        with answers():
            await self._redis.hset(self._keys.tally(key, version), "broken", "1")

    async def tell(self, event: Event) -> None:
        """Adds an event to the last thousand; one that equals the last is that one."""
        with answers():
            await self._tell_script(keys=[self._keys.audit_events], args=arguments([event]))

    async def events(self, most: int) -> list[Event]:
        """The newest events, the last one first."""
        with answers():
            found: Any = await self._redis.xrevrange(self._keys.audit_events, count=most)
        return [Event(told["kind"], json.loads(told["data"]), id) for id, told in found]


def _tally(found: list[str | None]) -> Tally:
    requests, misses, broken = found
    return Tally(int(requests or 0), int(misses or 0), bool(broken))
