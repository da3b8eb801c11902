"""The store of policies in terms of documents and slots: what commands, routes and profilers ask of it."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from redis.asyncio import Redis

from warpcache_ray.errors import InvalidConfig, InvalidRequest, LostRace, NotFound
from warpcache_ray.policy_slots import (
    check_model,
    check_quality,
    quality_of,
    read_document,
    read_published,
    slot_id,
)
from warpcache_ray.store.connection import answers, check, connect
from warpcache_ray.store.keys import APPLICATIONS, application_of
from warpcache_ray.store.policies import ALL, Policies, PolicyStore, Version

SCAN = 1000


class Published:
    """Each answer is JSON. Changes take the `revision` that the caller has seen, if it has to be that one still; who
    changes something and why stands in the history. Every method raises Unavailable when the server can't serve."""

    def __init__(self, store: PolicyStore) -> None:
        self.store = store

    async def slots(self) -> list[dict[str, Any]]:
        """A line for each slot that was ever published for."""
        return [_line(await self.store.read(slot)) for slot in await self.store.keys()]

    async def find(self, name: str) -> str:
        """The slot whose name begins so.

        Raises:
            NotFound: there is none.
            InvalidRequest: there are several.
        """
        found = [slot for slot in await self.store.keys() if slot.startswith(name)]
        if not found:
            raise _unknown(name)
        if len(found) > 1 and name not in found:
            raise InvalidRequest(
                f"slot: {name!r} is not enough; there are {', '.join(found)}", "slot"
            )
        return name if name in found else found[0]

    async def show(self, slot: str) -> dict[str, Any]:
        """A slot's line, with the documents that are in force.

        Raises:
            NotFound: nothing was ever published for it.
        """
        seen = await self._seen(slot, None)
        documents = {
            place: None if version is None else version.document
            for place, version in (("active", seen.active), ("canary", seen.canary))
        }
        return _line(seen) | {"documents": documents}

    async def document(self, slot: str, version: int | None = None) -> dict[str, Any]:
        """A version's document, by default the active one's.

        Raises:
            NotFound: there is no such version.
        """
        if version is not None:
            return (await self.store.version(slot, version)).document
        seen = await self._seen(slot, None)
        if seen.active is None:
            raise NotFound(f"slot {slot!r} has no active version", "slot")
        return seen.active.document

    async def history(self, slot: str) -> list[dict[str, Any]]:
        """A slot's last changes, the newest first.

        Raises:
            NotFound: nothing was ever published for it.
        """
        await self._seen(slot, None)
        return [dataclasses.asdict(change) for change in await self.store.history(slot)]

    async def publish(
        self,
        quality: str,
        content: Any,
        who: str,
        why: str,
        share: int = ALL,
        revision: int | None = None,
    ) -> dict[str, Any]:
        """A document's new version, active or with less than 100 % the canary; the slot's line after that.

        Raises:
            InvalidPolicy: no document, or one of a model that isn't served.
            InvalidRequest: no such quality, or no such share.
            LostRace: another change was made first.
        """
        document = read_document(content)
        slot = slot_id(check_quality(quality), document.key)
        check_model(document, await self.store.served())
        seen = _as_seen(await self.store.read(slot), revision)
        await self.store.publish(seen, document.to_dict(), who, why, share)
        return await self._line(slot)

    async def activate(
        self,
        slot: str,
        version: int,
        who: str,
        why: str,
        share: int = ALL,
        revision: int | None = None,
    ) -> dict[str, Any]:
        """Has a version that is there in force, or with less than 100 % as the canary; the slot's line after that.

        Raises:
            NotFound: there is no such version.
            InvalidRequest: no such share.
            LostRace: another change was made first.
        """
        seen = await self._seen(slot, revision)
        read_published(slot, (await self.store.version(slot, version)).document)
        await self.store.activate(seen, version, who, why, share)
        return await self._line(slot)

    async def promote(
        self, slot: str, who: str, why: str, revision: int | None = None
    ) -> dict[str, Any]:
        """Has the canary in force; the slot's line after that.

        Raises:
            NotFound: there is no canary.
            LostRace: another change was made first.
        """
        await self.store.promote(await self._seen(slot, revision), who, why)
        return await self._line(slot)

    async def withdraw(
        self, slot: str, who: str, why: str, revision: int | None = None
    ) -> dict[str, Any]:
        """Ends the canary; the slot's line after that.

        Raises:
            NotFound: there is no canary.
            LostRace: another change was made first.
        """
        await self.store.withdraw(await self._seen(slot, revision), who, why)
        return await self._line(slot)

    async def rollback(
        self, slot: str, who: str, why: str, revision: int | None = None
    ) -> dict[str, Any]:
        """Has what was in force before in force again; the slot's line after that.

        Raises:
            NotFound: there was nothing.
            LostRace: another change was made first.
        """
        await self.store.rollback(await self._seen(slot, revision), who, why)
        return await self._line(slot)

    async def _seen(self, slot: str, revision: int | None) -> Policies:
        found = await self.store.read(slot)
        if not found.revision:
            raise _unknown(slot)
        return _as_seen(found, revision)

    async def _line(self, slot: str) -> dict[str, Any]:
        return _line(await self.store.read(slot))


@asynccontextmanager
async def published(url: str, application: str | None = None) -> AsyncIterator[Published]:
    """The policies of an application in a store; without a name, of the only one that has something there.

    Raises:
        InvalidConfig: a URL or a server that won't do, or there is not just one application.
        Unavailable: the server can't be reached.
    """
    redis = connect(url)
    try:
        await check(redis)
        yield Published(PolicyStore(redis, application or await _only_application(redis)))
    finally:
        await redis.aclose()


async def _only_application(redis: Redis) -> str:
    with answers():
        found = {application_of(k) async for k in redis.scan_iter(APPLICATIONS, count=SCAN)}
    if len(found) != 1:
        there = ", ".join(sorted(found)) or "none so far"
        raise InvalidConfig(
            f"app: must be given, as the store has not just one application: {there}", "app"
        )
    return found.pop()


def _as_seen(found: Policies, revision: int | None) -> Policies:
    if revision in (None, found.revision):
        return found
    raise LostRace(
        f"slot {found.key!r} is at revision {found.revision}, not {revision} any more; somebody else has changed it",
        "revision",
    )


def _line(seen: Policies) -> dict[str, Any]:
    def number(version: Version | None) -> int | None:
        return None if version is None else version.number

    shown = seen.active or seen.canary
    document: dict[str, Any] = {} if shown is None else shown.document
    return {
        "slot": seen.key,
        "quality": quality_of(seen.key),
        "revision": seen.revision,
        "active": number(seen.active),
        "canary": number(seen.canary),
        "share": seen.share,
        **{part: document.get(part) for part in ("key", "target", "certified", "expected")},
    }


def _unknown(slot: str) -> NotFound:
    return NotFound(f"nothing is published for slot {slot!r}", "slot")
