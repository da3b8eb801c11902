"""Where a profiler publishes what it finds: a slot of a store, as it was when the profiler began."""

from __future__ import annotations

import asyncio
import getpass
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

from warpcache_ray.errors import InvalidRequest, LostRace
from warpcache_ray.policy_document import PolicyDocument, PolicyKey
from warpcache_ray.policy_slots import check_quality, slot_id
from warpcache_ray.store.policies import ALL
from warpcache_ray.store.published import Published, published


def asked(store: str, app: str | None, ask: Callable[[Published], Awaitable[Any]]) -> Any:
    """What an application's published policies answer.

    Raises:
        InvalidConfig: a store that won't do, or an application that isn't named where there are several.
        Unavailable: the store can't be reached.
    """

    async def answer() -> Any:
        async with published(store, app) as policies:
            return await ask(policies)

    return asyncio.run(answer())


def whoever(by: str | None = None) -> str:
    """Who changes something, for the history: user@host, if nobody is named."""
    return by or f"{getpass.getuser()}@{socket.gethostname()}"


@dataclass(frozen=True, slots=True)
class Publication:
    """What is to become of a profile's policy: active for requests of a quality, or the canary with a share of them.

    Raises:
        InvalidRequest: no such quality or share.
    """

    store: str
    app: str | None = None
    quality: str = "default"
    share: int = ALL
    revision: int | None = None
    """The slot's, when the profile began."""

    def __post_init__(self) -> None:
        check_quality(self.quality)
        if not 1 <= self.share <= ALL:
            raise InvalidRequest(
                f"canary: {self.share} is not allowed; it must be 1 to {ALL} (percent)", "canary"
            )

    def began(self, key: PolicyKey) -> Publication:
        """With the slot as it is now: what is found is only published if nobody has changed it by then.

        Raises:
            Unavailable: the store can't be reached.
        """
        slot = slot_id(self.quality, key)

        async def look(policies: Published) -> int:
            return (await policies.store.read(slot)).revision

        return replace(self, revision=asked(self.store, self.app, look))

    def publish(self, document: PolicyDocument) -> str:
        """Publishes the document; what became of it, in words.

        Raises:
            LostRace: somebody else has published in the meantime; nothing is changed.
            Unavailable: the store can't be reached.
        """
        proof = "certified" if document.certified else "an estimate"
        why = f"profiled for {document.target}, {proof}"
        content = document.to_dict()

        async def put(policies: Published) -> Any:
            return await policies.publish(
                self.quality, content, whoever(), why, self.share, self.revision
            )

        try:
            line = asked(self.store, self.app, put)
        except LostRace as error:
            message = f"{error.message}: publish the file with `warpcache policy set` if it is to be in force"
            raise LostRace(message, error.param) from error
        place = f"version {line['active']}, active"
        if self.share < ALL:
            place = f"version {line['canary']}, canary with {self.share} % of the requests"
        return f"{line['slot']}: {place}"
