"""What the coordinator knows of the published policies: follows the store, and settles which one a job has.

A job's policy is settled with its first claim, in the write that makes the claim: a change of what is published reaches
all replicas with their next job, and none that is running. Later attempts, and all ranks, have the job's.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from warpcache_ray.config import Quality, ServiceConfig
from warpcache_ray.errors import InvalidPolicy, Unavailable
from warpcache_ray.policy_document import PolicyDocument
from warpcache_ray.policy_slots import in_canary, read_document, read_published, slot_id
from warpcache_ray.serving.choices import (
    DEFAULT,
    Choice,
    Offer,
    Source,
    choose,
    configured,
    given,
    key_of,
)
from warpcache_ray.serving.last_known import LastKnown
from warpcache_ray.serving.lifecycle import Job, with_policy
from warpcache_ray.store.policies import Policies, PolicyStore, Version

log = logging.getLogger(__name__)

POLL_S = 10.0
"""How soon a change is seen that wasn't heard of."""
RETRY_S = 0.2
SERVED_S = 60
"""For how long the store remembers which models are served."""


@dataclass(frozen=True, slots=True)
class Slot:
    """What the store has in a slot, and what of it can be used."""

    policies: Policies
    active: Offer | None
    canary: Offer | None


class Registry:
    """Reads all that is published; `away` says whether the store couldn't be asked of late."""

    def __init__(
        self,
        store: PolicyStore,
        folder: Path,
        config: Callable[[], ServiceConfig],
        replicas: Callable[[], Collection[Mapping[str, Any]]],
    ) -> None:
        self.store = store
        self.away = False
        self._config = config
        self._replicas = replicas
        self._slots: dict[str, Slot] = {}
        self._last_known = LastKnown(folder)
        self._reading = asyncio.Lock()
        """So that what was read first isn't seen last."""
        self._files: tuple[Any, dict[str, Offer]] = (None, {})
        """The configuration's documents as they were given, and what they offer."""

    async def load(self) -> None:
        """What the disk has, then what the store has, if it can be asked."""
        await asyncio.to_thread(self._last_known.load)
        try:
            await self.refresh()
        except Unavailable as error:
            log.warning("published policies are those last known: %s", error.message)

    async def follow(self) -> None:
        """A round of the follower: hears of each change, for as long as the connection holds."""
        await asyncio.sleep(RETRY_S)
        try:
            async for slot in self.store.changes():
                await self.refresh(slot)
        except Unavailable:
            self.away = True
            raise

    async def poll(self) -> None:
        """A round of the net under it: looks at everything; tells the store which models are served."""
        await asyncio.sleep(POLL_S)
        await self.refresh()
        if models := self.models:
            await self.store.serve(models, SERVED_S)

    async def refresh(self, slot: str | None = None) -> None:
        """Reads a slot anew, or all.

        Raises:
            Unavailable: the store can't be asked; what was known stays.
        """
        async with self._reading:
            try:
                names = await self.store.keys() if slot is None else [slot]
                found = [await self.store.read(name) for name in names]
            except Unavailable:
                self.away = True
                raise
            self.away = False
            # A store that loses its data in between has listed what it doesn't have any more: that says nothing.
            there = {policies.key: policies for policies in found if policies.revision}
            for name in [name for name in self._slots if name not in there]:
                if slot in (None, name):
                    del self._slots[name]
            for policies in there.values():
                await self._see(policies)

    @property
    def models(self) -> list[str]:
        """Those that the replicas serve."""
        return sorted({info["policy_key"]["model"] for info in self._replicas()})

    @property
    def slots(self) -> list[Policies]:
        """What the store has, as last seen."""
        return [slot.policies for slot in self._slots.values()]

    def policies(self, slot: str) -> Policies | None:
        """What the store has in a slot, as last seen."""
        known = self._slots.get(slot)
        return None if known is None else known.policies

    def choose(
        self,
        asked: Mapping[str, Any],
        request: Mapping[str, Any],
        info: Mapping[str, Any],
        job_id: str | None,
    ) -> Choice:
        """The policy of a job that asks for one in full, or for `{"quality": …}`; without a job, no canary's."""
        if "quality" not in asked:
            return given(asked)
        return choose(
            asked["quality"],
            key_of(request, info),
            lambda slot: self._offers(slot, job_id),
            self._known(),
            self._config(),
        )

    def submitted(
        self, asked: Mapping[str, Any], request: Mapping[str, Any], job_id: str
    ) -> Choice:
        """The policy that a job would have if it were claimed now.

        Raises:
            Unavailable: no replica is ready to tell what model it is for.
        """
        if "quality" not in asked:
            return given(asked)
        info = next(iter(self._replicas()), None)
        if info is None:
            raise Unavailable("no replica is ready yet; try again")
        return self.choose(asked, request, info, job_id)

    def offered(self, request: Mapping[str, Any]) -> dict[str, Choice]:
        """What such a request would be given for each name of a quality; before a replica has told what model it is
        for, what the configuration has."""
        info = next(iter(self._replicas()), None)
        asked = {DEFAULT: None, **{name: name for name in get_args(Quality)}}
        if info is None:
            return {name: configured(each, self._config()) for name, each in asked.items()}
        return {
            name: self.choose({"quality": each}, request, info, None)
            for name, each in asked.items()
        }

    def settle(self, job: Job, info: Mapping[str, Any]) -> Job:
        """The job as its first attempt begins with it; any later one goes on with what that had."""
        quality = job.policy_origin.get("quality")
        if job.fence or quality is None:
            return job
        asked = {"quality": None if quality == "default" else quality}
        choice = self.choose(asked, job.request, info, job.id)
        if choice.origin == job.policy_origin and choice.policy == job.policy:
            return job
        return with_policy(job, choice.policy, choice.origin)

    def _offers(self, slot: str, job_id: str | None) -> list[Offer]:
        known, found = None if self.away else self._slots.get(slot), []
        if known is not None:
            chosen = job_id is not None and in_canary(job_id, known.policies.share)
            if chosen and known.canary is not None:
                found.append(known.canary)
            if known.active is not None:
                return [*found, known.active]
        instead = self._instead(slot)
        return [*found, instead] if instead is not None else found

    def _instead(self, slot: str) -> Offer | None:
        """What stands in for an active version."""
        kept = self._last_known.found.get(slot)
        if kept is not None:
            version, document = kept
            lost = "can't be asked" if self.away else "has none that can be used"
            why = f"the store {lost}; version {version} was active when last seen"
            return Offer(slot, document, Source.LAST_KNOWN_GOOD, why, version)
        return self._of_files().get(slot)

    def _known(self) -> dict[str, PolicyDocument]:
        """All documents that slots offer, but for canaries: each active one is a last known one too."""
        files = {slot: offer.document for slot, offer in self._of_files().items()}
        kept = {slot: document for slot, (_, document) in self._last_known.found.items()}
        return {**files, **kept}

    def _of_files(self) -> dict[str, Offer]:
        given = self._config().policies
        if isinstance(given, str):
            return {}
        if given is not self._files[0]:
            documents = [(q, read_document(each)) for q in given for each in given[q]]
            offers = [
                Offer(slot_id(q, d.key), d, Source.FILE, "the configuration's; the store has none")
                for q, d in documents
            ]
            self._files = given, {offer.slot: offer for offer in offers}
        return self._files[1]

    async def _see(self, policies: Policies) -> None:
        before = self._slots.get(policies.key)
        if before is not None and before.policies == policies:
            return
        slot = policies.key
        active = _offer(slot, policies.active, Source.REGISTRY, "it is active")
        share = f"it has {policies.share} % of the requests"
        canary = _offer(slot, policies.canary, Source.CANARY, share)
        if active is not None:
            assert active.version is not None
            keep = self._last_known.keep
            await asyncio.to_thread(keep, slot, active.version, active.document)
        elif policies.active is None:
            await asyncio.to_thread(self._last_known.forget, slot)
        self._slots[slot] = Slot(policies, active, canary)


def _offer(slot: str, version: Version | None, source: Source, why: str) -> Offer | None:
    """What a version offers; nothing where it can't be read, or is another model's."""
    if version is None:
        return None
    try:
        document = read_published(slot, version.document)
    except InvalidPolicy as error:
        log.error("version %s of %s is refused: %s", version.number, slot, error.message)  # noqa: TRY400
        return None
    return Offer(slot, document, source, why, version.number)
