"""Job records in Redis: versioned, in three ordered places, each change atomic, together with what it tells."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis

from warpcache_ray.errors import Superseded
from warpcache_ray.store.connection import Answers
from warpcache_ray.store.events import PUSH, Event, Events, arguments
from warpcache_ray.store.keys import Keys, Place

BATCH = 200
OVERTAKEN = -1

PUT = f"""{PUSH}
local version, writer = unpack(redis.call('HMGET', KEYS[1], 'version', 'writer'))
local id, before, after, place, score, body, me, generation = unpack(ARGV)
if writer == me then return 1 end
if tonumber(redis.call('GET', KEYS[6]) or 0) > tonumber(generation) then return -1 end
if (version or '') ~= before then return 0 end
redis.call('ZADD', KEYS[2], score, id)
redis.call('HSET', KEYS[1],
    'version', after, 'place', place, 'score', score, 'body', body, 'writer', me)
redis.call('ZREM', KEYS[3], id)
redis.call('ZREM', KEYS[4], id)
for told = 9, #ARGV, 2 do push(KEYS[5], ARGV[told], ARGV[told + 1]) end
return 1
"""
"""Compare and set. The writer is one call's mark: sent again after a broken connection, it finds its own write.

ZADD comes first: it refuses what is no score, and a full server refuses a script at its first write only,
unless that frees memory as ZREM does. -1: a newer generation writes now.
"""

KEEP = """
if redis.call('EXISTS', KEYS[1]) == 1 then redis.call('HSET', KEYS[2], ARGV[1], ARGV[2]) end
"""
"""Beside a record, for as long as that is there."""

REMOVE = """
redis.call('DEL', KEYS[1], KEYS[2], KEYS[3])
for place = 4, #KEYS do redis.call('ZREM', KEYS[place], ARGV[1]) end
"""

ALL_IDS = """
local ids = {}
for place = 1, #KEYS do
    for _, id in ipairs(redis.call('ZRANGE', KEYS[place], 0, -1)) do table.insert(ids, id) end
end
return ids
"""
"""All at once: a record that moves meanwhile is in one place just the same. A script, as a full server refuses
transactions, be it one that only reads or removes.
"""

RAISE_EPOCH = """
local epoch = redis.call('INCR', KEYS[1])
if ARGV[1] == 'model' then redis.call('SET', KEYS[2], epoch) end
return epoch
"""


@dataclass(frozen=True, slots=True)
class Record:
    """One job. `score` orders it in its place, smallest first; `body` is the store's user's, and JSON."""

    id: str
    version: int
    place: Place
    score: float
    body: dict[str, Any]


class JobStore:
    """The records of one application. Every method raises Unavailable when the server can't serve.

    A write that raises may have been stored all the same, where only its answer was lost; `get` tells. Once another
    store of the application was opened, `create`, `swap` and `hold` raise Superseded instead, and change nothing.
    """

    def __init__(self, redis: Redis, application: str) -> None:
        self._redis = redis
        self._keys = Keys(application)
        self._generation = 0
        self.superseded = False
        """A newer one was met."""
        self.answers = Answers()
        self.events = Events(redis, self._keys, self.answers)
        self._put_script = redis.register_script(PUT)
        self._keep_script = redis.register_script(KEEP)
        self._remove_script = redis.register_script(REMOVE)
        self._all_ids_script = redis.register_script(ALL_IDS)
        self._raise_epoch_script = redis.register_script(RAISE_EPOCH)

    async def open(self) -> None:
        """Begins a generation: those before it may write no more."""
        with self.answers():
            self._generation = int(await self._redis.incr(self._keys.generation))

    async def hold(self) -> None:
        """Makes sure that no newer generation has begun.

        Raises:
            Superseded: one has.
        """
        with self.answers():
            newest = int(await self._redis.get(self._keys.generation) or 0)
        if newest > self._generation:
            raise self._overtaken()

    async def create(self, record: Record, events: Sequence[Event] = ()) -> bool:
        """Stores a new record and what it tells. False: its id exists, nothing was stored."""
        return await self._put(record, "", events)

    async def swap(self, record: Record, events: Sequence[Event] = ()) -> bool:
        """Stores the record in place of the version before its own, and what that tells. False: that isn't what is
        stored, nor is anything now."""
        return await self._put(record, str(record.version - 1), events)

    async def get(self, id: str) -> Record | None:
        """The record as it stands, or None."""
        with self.answers():
            return _record(id, await self._redis.hgetall(self._keys.job(id)))

    async def remove(self, id: str) -> None:
        """Forgets the record, if there is one, and what is kept beside it."""
        with self.answers():
            keys = [self._keys.job(id), self._keys.events(id), self._keys.decisions(id)]
            await self._remove_script(keys=[*keys, *self._keys.places.values()], args=[id])

    async def keep_decisions(self, id: str, fence: int, decisions: Any) -> None:
        """Keeps what an attempt decided, as JSON, beside the job's record; in vain if there is none."""
        with self.answers():
            keys = [self._keys.job(id), self._keys.decisions(id)]
            await self._keep_script(keys=keys, args=[fence, json.dumps(decisions)])

    async def decisions(self, id: str, fence: int) -> Any:
        """What was kept of an attempt's decisions, or None."""
        with self.answers():
            kept = await self._redis.hget(self._keys.decisions(id), str(fence))
            return None if kept is None else json.loads(kept)

    async def ids(self, place: Place, start: int = 0, stop: int = -1) -> list[str]:
        """Who is in a place, by score, from one rank to another; both count, negative ones from the end."""
        with self.answers():
            ids = await self._redis.zrange(self._keys.places[place], start, stop)
            return [str(id) for id in ids]

    async def load(self) -> list[Record]:
        """All records, by score (and id, where scores are equal)."""
        with self.answers():
            ids = await self._all_ids_script(keys=list(self._keys.places.values()))
            records = []
            for first in range(0, len(ids), BATCH):
                records += await self._batch(ids[first : first + BATCH])
        return sorted(records, key=lambda record: (record.score, record.id))

    async def model_epoch(self) -> int:
        """The newest epoch that was raised for all jobs; 0 before the first one."""
        with self.answers():
            return int(await self._redis.get(self._keys.model_epoch) or 0)

    async def raise_epoch(self, of_model: bool = False) -> int:
        """A new epoch, for all jobs or for one, larger than any before (not always by one)."""
        with self.answers():
            return int(
                await self._raise_epoch_script(
                    keys=[self._keys.epoch, self._keys.model_epoch],
                    args=["model" if of_model else "job"],
                )
            )

    async def _put(self, record: Record, before: str, events: Sequence[Event]) -> bool:
        places = dict(self._keys.places)
        place = places.pop(record.place)
        with self.answers():
            stored = await self._put_script(
                keys=[
                    self._keys.job(record.id),
                    place,
                    *places.values(),
                    self._keys.events(record.id),
                    self._keys.generation,
                ],
                args=[
                    record.id,
                    before,
                    record.version,
                    record.place.value,
                    record.score,
                    json.dumps(record.body),
                    uuid.uuid4().hex,
                    self._generation,
                    *arguments(events),
                ],
            )
        if stored == OVERTAKEN:
            raise self._overtaken()
        return bool(stored)

    def _overtaken(self) -> Superseded:
        self.superseded = True
        return Superseded("another coordinator of this application has begun since; ask that one")

    async def _batch(self, ids: list[str]) -> list[Record]:
        async with self._redis.pipeline(transaction=False) as pipe:
            for id in ids:
                pipe.hgetall(self._keys.job(id))
            found = [
                _record(id, stored) for id, stored in zip(ids, await pipe.execute(), strict=True)
            ]
        # None: removed since its id was read.
        return [record for record in found if record is not None]


def _record(id: str, stored: Mapping[Any, Any]) -> Record | None:
    if not stored:
        return None
    return Record(
        id,
        int(stored["version"]),
        Place(stored["place"]),
        float(stored["score"]),
        json.loads(stored["body"]),
    )
