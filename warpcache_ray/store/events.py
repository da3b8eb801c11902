"""What happened to each job, in order: a Redis stream beside its record, which goes when the record goes."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis

from warpcache_ray.store.connection import Answers
from warpcache_ray.store.keys import Keys

KEPT = 1000
"""Of a job; older ones make room. In whole nodes of the stream, so that some more may stay."""
BATCH = 100
BEGIN = "0-0"
"""The id before all ids."""

PUSH = f"""
local function push(stream, kind, data)
    redis.call('XADD', stream, 'MAXLEN', '~', {KEPT}, '*', 'kind', kind, 'data', data)
end
"""
"""Begins each script that tells."""

TELL = f"""{PUSH}
if redis.call('EXISTS', KEYS[1]) == 0 then return end
local last = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)[1]
if last and last[2][2] == ARGV[1] and last[2][4] == ARGV[2] then return end
push(KEYS[2], ARGV[1], ARGV[2])
"""
"""Nothing is told of a job that is gone. Sent again after a broken connection, it finds what it has told."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened. `data` is the store's user's, and JSON; the stream gives the id, which rises."""

    kind: str
    data: dict[str, Any]
    id: str = ""


class Events:
    """The streams of one application. Every method raises Unavailable when the server can't serve."""

    def __init__(self, redis: Redis, keys: Keys, answers: Answers) -> None:
        self._redis = redis
        self._keys = keys
        self._answers = answers
        self._tell_script = redis.register_script(TELL)

    async def tell(self, id: str, event: Event) -> None:
        """Adds an event to those of a job; one that equals the job's last is that one."""
        with self._answers():
            keys = [self._keys.job(id), self._keys.events(id)]
            await self._tell_script(keys=keys, args=arguments([event]))

    async def read(self, id: str, after: str = BEGIN) -> list[Event]:
        """The next events of a job after one of them, the oldest first, a limited number at a time."""
        with self._answers():
            # Any: the client's types don't know that it decodes.
            found: Any = await self._redis.xrange(self._keys.events(id), f"({after}", count=BATCH)
        return [Event(told["kind"], json.loads(told["data"]), event) for event, told in found]


def arguments(events: Iterable[Event]) -> list[str]:
    """Events as a script takes them: kind, data, kind, data…"""
    return [part for event in events for part in (event.kind, json.dumps(event.data))]
