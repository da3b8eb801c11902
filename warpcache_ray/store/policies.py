"""Tuned policies in Redis: numbered versions that never change, which of them is in force, and how that came about."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from redis.asyncio import Redis

from warpcache_ray.errors import InvalidRequest, LostRace, NotFound, PayloadTooLarge
from warpcache_ray.store.connection import answers
from warpcache_ray.store.keys import Keys

LARGEST_BYTES = 4 << 20
"""Of a document. A calibration's matrix of a hundred steps has some 100 kB."""
KEPT = 200
"""Changes of a key that its history tells, and that can be rolled back."""
WAKE_S = 1.0
ALL = 100
"""The share of the requests that the active version has where there is no canary, in percent."""

READ = """
local found = redis.call('HMGET', KEYS[1], 'revision', 'active', 'canary', 'share')
for place = 2, 3 do
    found[place + 3] = found[place] and redis.call('HGET', KEYS[1], found[place])
end
return found
"""
"""Pointers and documents as they were at one time, in one round trip."""

CHANGE = f"""
local key, channel, seen, me, what, version, share, document, note = unpack(ARGV)
local revision, writer, turned, newest, active =
    unpack(redis.call('HMGET', KEYS[1], 'revision', 'writer', 'turned', 'newest', 'active'))
if writer == me then return turned end
if (revision or '0') ~= seen then return {{'lost race', revision or '0'}} end
if what == 'publish' then
    version = tostring((newest or 0) + 1)
elseif what == 'rollback' then
    version = redis.call('LINDEX', KEYS[2], 0)
    if not version then return {{'nothing before'}} end
elseif redis.call('HEXISTS', KEYS[1], version) == 0 then
    return {{'unknown', version}}
end
redis.call('HSET', KEYS[1], 'revision', seen + 1, 'writer', me, 'turned', version)
redis.call('SADD', KEYS[4], key)
if what == 'publish' then redis.call('HSET', KEYS[1], 'newest', version, version, document) end
redis.call('HDEL', KEYS[1], 'canary', 'share')
if what == 'rollback' then
    redis.call('LPOP', KEYS[2])
    redis.call('HSET', KEYS[1], 'active', version)
elseif what ~= 'withdraw' and tonumber(share) == {ALL} then
    redis.call('LPUSH', KEYS[2], active or '')
    redis.call('LTRIM', KEYS[2], 0, {KEPT - 1})
    redis.call('HSET', KEYS[1], 'active', version)
elseif what ~= 'withdraw' then
    redis.call('HSET', KEYS[1], 'canary', version, 'share', share)
end
redis.call('LPUSH', KEYS[3], (seen + 1) .. ' ' .. version .. ' ' .. note)
redis.call('LTRIM', KEYS[3], 0, {KEPT - 1})
redis.call('PUBLISH', channel, key)
return version
"""
"""Compare and set, as for jobs. The first write asks for memory, so that a full server refuses all or nothing."""


class What(StrEnum):
    """The kinds of change."""

    PUBLISH = "publish"
    """A new version comes, into force or as a canary."""
    ACTIVATE = "activate"
    """A version that is there comes into force or becomes the canary."""
    WITHDRAW = "withdraw"
    """The canary goes."""
    ROLLBACK = "rollback"
    """What was in force before is again."""


@dataclass(frozen=True, slots=True)
class Version:
    """A policy and where it comes from. The document is the store's user's, and JSON; it never changes."""

    number: int
    document: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Policies:
    """What is in force for a key. The canary, if there is one, has `share` percent of the requests."""

    key: str
    revision: int
    """How many changes there have been."""
    active: Version | None = None
    canary: Version | None = None
    share: int = 0


@dataclass(frozen=True, slots=True)
class Change:
    """One entry of a key's history. `version` is the one that it was about; None for a return to none."""

    revision: int
    version: int | None
    what: What
    share: int
    who: str
    why: str
    at: float


class PolicyStore:
    """The policies of one application, by keys of its user's (a digest of what a policy was tuned for).

    Changes take what the caller has seen; if that is no longer so, they change nothing and raise LostRace. Each that
    brings another version into force ends the canary, for that was measured against the one before. Versions are kept
    for ever. Every method raises Unavailable when the server can't serve; a change that raises it may have been made
    all the same.
    """

    def __init__(self, redis: Redis, application: str) -> None:
        self._redis = redis
        self._keys = Keys(application)
        self._read_script = redis.register_script(READ)
        self._change_script = redis.register_script(CHANGE)

    async def read(self, key: str) -> Policies:
        """What is in force; revision 0 and nothing for a key that nobody has published for."""
        with answers():
            revision, active, canary, share, *documents = await self._read_script(
                keys=[self._keys.policy(key)]
            )
        return Policies(
            key,
            int(revision or 0),
            _version(active, documents[0]),
            _version(canary, documents[1]),
            int(share or 0),
        )

    async def version(self, key: str, number: int) -> Version:
        """One of a key's versions.

        Raises:
            NotFound: there is no such version.
        """
        with answers():
            document = await self._redis.hget(self._keys.policy(key), str(number))
        if document is None:
            raise _unknown(key, number)
        return Version(number, json.loads(document))

    async def previous(self, key: str) -> int | None:
        """The version that a rollback would bring back; None where that is none, or there is nothing to go back to."""
        with answers():
            # Any: the client's types don't know that it decodes.
            number: Any = await self._redis.lindex(self._keys.policy_before(key), 0)
        return int(number) if number else None

    async def history(self, key: str) -> list[Change]:
        """The last changes of a key, the newest first."""
        with answers():
            entries = await self._redis.lrange(self._keys.policy_history(key), 0, -1)
            return [_change(str(entry)) for entry in entries]

    async def keys(self) -> list[str]:
        """All keys that were ever published for."""
        with answers():
            return sorted(map(str, await self._redis.smembers(self._keys.policies)))

    async def serve(self, models: Sequence[str], for_s: int) -> None:
        """Says which models the application serves, for so many seconds."""
        with answers():
            await self._redis.set(self._keys.served, json.dumps(sorted(models)), ex=for_s)

    async def served(self) -> list[str]:
        """The models that the application serves; none where nobody has said so lately."""
        with answers():
            told = await self._redis.get(self._keys.served)
        return [] if told is None else list(json.loads(told))

    async def publish(
        self, seen: Policies, document: dict[str, Any], who: str, why: str, share: int = ALL
    ) -> int:
        """Stores a new version, which comes into force or, with a share below 100 %, becomes the canary; its number.

        Raises:
            InvalidRequest: a share that isn't 1 to 100.
            PayloadTooLarge: the document.
            LostRace: something has changed since it was `seen`.
        """
        text = json.dumps(document)
        if len(text) > LARGEST_BYTES:
            raise PayloadTooLarge(
                f"the policy for {seen.key!r} has {len(text)} bytes of JSON; at most {LARGEST_BYTES} are allowed",
                "document",
            )
        return await self._change(seen, What.PUBLISH, who, why, share=share, document=text)

    async def activate(
        self, seen: Policies, number: int, who: str, why: str, share: int = ALL
    ) -> None:
        """Brings a version into force or, with a share below 100 %, makes it the canary.

        Raises:
            InvalidRequest: a share that isn't 1 to 100.
            NotFound: there is no such version.
            LostRace: something has changed since it was `seen`.
        """
        await self._change(seen, What.ACTIVATE, who, why, str(number), share)

    async def promote(self, seen: Policies, who: str, why: str) -> None:
        """Brings the canary into force.

        Raises:
            NotFound: there is no canary.
            LostRace: something has changed since it was `seen`.
        """
        await self.activate(seen, _canary(seen), who, why)

    async def withdraw(self, seen: Policies, who: str, why: str) -> None:
        """Ends the canary.

        Raises:
            NotFound: there is no canary.
            LostRace: something has changed since it was `seen`.
        """
        await self._change(seen, What.WITHDRAW, who, why, str(_canary(seen)))

    async def rollback(self, seen: Policies, who: str, why: str) -> int | None:
        """Brings back what was in force before what is now (None: nothing was); the version left is not come back to.

        Raises:
            NotFound: there is nothing to go back to.
            LostRace: something has changed since it was `seen`.
        """
        return await self._change(seen, What.ROLLBACK, who, why) or None

    async def changes(self) -> AsyncIterator[str | None]:
        """Each key that changes, as it does, until the task that listens is cancelled. None, at the beginning and
        whenever the connection was away: changes may have gone by, read what matters."""
        with answers():
            async with self._redis.pubsub() as pubsub:
                await pubsub.subscribe(self._keys.policy_changes)
                # Asked of the task, for the client may lose a cancellation that comes together with an answer.
                while not _cancelled():
                    told = await pubsub.get_message(timeout=WAKE_S)
                    if told is not None:
                        yield told["data"] if told["type"] == "message" else None

    async def _change(
        self,
        seen: Policies,
        what: What,
        who: str,
        why: str,
        version: str = "",
        share: int = ALL,
        document: str = "",
    ) -> int:
        """The number of the version that it was about; 0 for a return to none."""
        if not 0 < share <= ALL:
            raise InvalidRequest(f"share = {share} is not allowed; it must be 1 to {ALL}", "share")
        note = json.dumps({"what": what, "share": share, "who": who, "why": why, "at": time.time()})
        keys = self._keys
        with answers():
            done = await self._change_script(
                keys=[
                    keys.policy(seen.key),
                    keys.policy_before(seen.key),
                    keys.policy_history(seen.key),
                    keys.policies,
                ],
                args=[
                    seen.key,
                    keys.policy_changes,
                    seen.revision,
                    uuid.uuid4().hex,
                    what.value,
                    version,
                    share,
                    document,
                    note,
                ],
            )
        if isinstance(done, list):
            raise _refusal(seen, *done)
        return int(done or 0)


def _cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _refusal(seen: Policies, why: str, about: str = "") -> NotFound | LostRace:
    if why == "unknown":
        return _unknown(seen.key, int(about))
    if why == "nothing before":
        return NotFound(f"policies for {seen.key!r} have no version to go back to", "version")
    return LostRace(
        f"policies for {seen.key!r} are at revision {about}, not {seen.revision} any more; read them again",
        "revision",
    )


def _canary(seen: Policies) -> int:
    if seen.canary is None:
        raise NotFound(f"policies for {seen.key!r} have no canary", "canary")
    return seen.canary.number


def _unknown(key: str, number: int) -> NotFound:
    return NotFound(f"policies for {key!r} have no version {number}", "version")


def _version(number: str | None, document: str | None) -> Version | None:
    return Version(int(number), json.loads(document)) if number and document else None


def _change(entry: str) -> Change:
    revision, version, note = entry.split(" ", 2)
    told = json.loads(note)
    return Change(
        int(revision),
        int(version) if version else None,
        What(told["what"]),
        told["share"],
        told["who"],
        told["why"],
        told["at"],
    )
