"""Job records in Redis: versioned, in three ordered places, each change atomic."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from redis.asyncio import Redis

from warpcache_ray.store.connection import answers

BATCH = 200

PUT = """
local version, writer = unpack(redis.call('HMGET', KEYS[1], 'version', 'writer'))
local id, before, after, place, score, body, me = unpack(ARGV)
if writer == me then return 1 end
if (version or '') ~= before then return 0 end
redis.call('ZADD', KEYS[2], score, id)
redis.call('HSET', KEYS[1],
    'version', after, 'place', place, 'score', score, 'body', body, 'writer', me)
redis.call('ZREM', KEYS[3], id)
redis.call('ZREM', KEYS[4], id)
return 1
"""
"""Compare and set. The writer is one call's mark: sent again after a broken connection, it finds its own write.

ZADD comes first: it refuses what is no score, and a full server refuses a script at its first write only,
unless that frees memory as ZREM does.
"""

REMOVE = """
redis.call('DEL', KEYS[1])
for place = 2, #KEYS do redis.call('ZREM', KEYS[place], ARGV[1]) end
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

CLAIM_KEY = """
local owner = redis.call('GET', KEYS[1])
if owner then return owner end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return ARGV[1]
"""


RAISE_EPOCH = """
local epoch = redis.call('INCR', KEYS[1])
if ARGV[1] == 'model' then redis.call('SET', KEYS[2], epoch) end
return epoch
"""


class Place(StrEnum):
    """Which of the ordered sets a record is in."""

    QUEUED = "queued"
    RUNNING = "running"
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class Record:
    """One job. `score` orders it in its place, smallest first; `body` is the store's user's, and JSON."""

    id: str
    version: int
    place: Place
    score: float
    body: dict[str, Any]


class _Keys:
    """All keys of an application. The braces keep them in one slot of a cluster."""

    def __init__(self, application: str) -> None:
        root = f"{{warpcache:{application}}}"
        self.epoch, self.model_epoch = f"{root}:epoch", f"{root}:epoch:model"
        self.places = {place: f"{root}:{place}" for place in Place}
        self._root = root

    def job(self, id: str) -> str:
        return f"{self._root}:job:{id}"

    def idempotency(self, key: str) -> str:
        return f"{self._root}:key:{key}"


class JobStore:
    """The records of one application. Every method raises Unavailable when the server can't serve.

    A write that raises may have been stored all the same, where only its answer was lost; `get` tells.
    """

    def __init__(self, redis: Redis, application: str) -> None:
        self._redis = redis
        self._keys = _Keys(application)
        self._put_script = redis.register_script(PUT)
        self._remove_script = redis.register_script(REMOVE)
        self._all_ids_script = redis.register_script(ALL_IDS)
        self._claim_key_script = redis.register_script(CLAIM_KEY)
        self._raise_epoch_script = redis.register_script(RAISE_EPOCH)

    async def create(self, record: Record) -> bool:
        """Stores a new record. False: its id exists, nothing was stored."""
        return await self._put(record, before="")

    async def swap(self, record: Record) -> bool:
        """Stores the record in place of the version before its own. False: that isn't what is stored."""
        return await self._put(record, before=str(record.version - 1))

    async def get(self, id: str) -> Record | None:
        """The record as it stands, or None."""
        with answers():
            return _record(id, await self._redis.hgetall(self._keys.job(id)))

    async def remove(self, id: str) -> None:
        """Forgets the record, if there is one."""
        with answers():
            keys = [self._keys.job(id), *self._keys.places.values()]
            await self._remove_script(keys=keys, args=[id])

    async def ids(self, place: Place, start: int = 0, stop: int = -1) -> list[str]:
        """Who is in a place, by score, from one rank to another; both count, negative ones from the end."""
        with answers():
            ids = await self._redis.zrange(self._keys.places[place], start, stop)
            return [str(id) for id in ids]

    async def load(self) -> list[Record]:
        """All records, by score (and id, where scores are equal)."""
        with answers():
            ids = await self._all_ids_script(keys=list(self._keys.places.values()))
            records = []
            for first in range(0, len(ids), BATCH):
                records += await self._batch(ids[first : first + BATCH])
        return sorted(records, key=lambda record: (record.score, record.id))

    async def model_epoch(self) -> int:
        """The newest epoch that was raised for all jobs; 0 before the first one."""
        with answers():
            return int(await self._redis.get(self._keys.model_epoch) or 0)

    async def raise_epoch(self, of_model: bool = False) -> int:
        """A new epoch, for all jobs or for one, larger than any before (not always by one)."""
        with answers():
            return int(
                await self._raise_epoch_script(
                    keys=[self._keys.epoch, self._keys.model_epoch],
                    args=["model" if of_model else "job"],
                )
            )

    async def claim_key(
        self, key: str, body_hash: str, job_id: str, ttl_s: float
    ) -> tuple[str, str]:
        """Job and body hash that own an idempotency key: the given ones, unless it was claimed within its time."""
        with answers():
            owner = await self._claim_key_script(
                keys=[self._keys.idempotency(key)],
                args=[json.dumps([job_id, body_hash]), max(1, round(ttl_s * 1000))],
            )
        job_id, body_hash = json.loads(owner)
        return job_id, body_hash

    async def _put(self, record: Record, before: str) -> bool:
        places = dict(self._keys.places)
        place = places.pop(record.place)
        with answers():
            stored = await self._put_script(
                keys=[self._keys.job(record.id), place, *places.values()],
                args=[
                    record.id,
                    before,
                    record.version,
                    record.place.value,
                    record.score,
                    json.dumps(record.body),
                    uuid.uuid4().hex,
                ],
            )
        return bool(stored)

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
