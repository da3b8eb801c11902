"""The coordinator's part of profiling by itself: plans it on the first requests, hands it to one idle replica at a
time, and publishes what that finds as a canary."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from warpcache_ray.config import ServiceConfig
from warpcache_ray.errors import LostRace
from warpcache_ray.policy_document import parse_document
from warpcache_ray.policy_slots import slot_id
from warpcache_ray.serving import first_requests
from warpcache_ray.serving.choices import DEFAULT
from warpcache_ray.serving.fleet import Fleet
from warpcache_ray.serving.jobs import Jobs
from warpcache_ray.serving.lifecycle import Status
from warpcache_ray.store.audits import AuditStore
from warpcache_ray.store.events import Event
from warpcache_ray.store.policies import PolicyStore
from warpcache_ray.store.profiles import ProfileStore

log = logging.getLogger(__name__)

WHO = "auto_profile"
TRIES = 3
"""How often a profile is begun whose end isn't told: it may be what its replica dies of."""


class AutoProfiler:
    """What is to be profiled, and what its outcome means. Plans are in the store; the runs of one are kept with the
    replica that it is under way at, and made anew by another one."""

    def __init__(
        self,
        jobs: Jobs,
        fleet: Fleet,
        store: ProfileStore,
        policies: PolicyStore,
        events: AuditStore,
        config: Callable[[], ServiceConfig],
    ) -> None:
        self._jobs = jobs
        self._fleet = fleet
        self._store = store
        self._policies = policies
        self._events = events
        self._config = config
        self._at: dict[str, str] = {}
        """Which group each replica profiles, or has left off."""
        self._begun: Counter[str] = Counter()

    async def next(self, replica: str) -> dict[str, Any] | None:
        """What an idle replica is to profile, by its plan; None if there is nothing, or it is needed."""
        if self._jobs.count(Status.QUEUED) or self._fleet.retired(replica):
            return None
        live = self._fleet.live(self._config().lease_s)
        if replica not in live:
            return None
        model, plans = live[replica]["policy_key"]["model"], await self._store.plans()
        wish = self._config().profiler
        ended = self._jobs.having(Status.SUCCEEDED)
        found = first_requests.planned(ended, model, wish.profile_requests, wish.quality, plans)
        if found is not None:
            group, plan = found
            await self._store.plan(group, plan)
            plans[group] = plan
        self._at = {other: group for other, group in self._at.items() if other in live}
        elsewhere = {group for other, group in self._at.items() if other != replica}
        for group, plan in plans.items():
            ended_or_anothers = "end" in plan or plan["model"] != model
            if not (ended_or_anothers or group in elsewhere or self._begun[group] >= TRIES):
                self._at[replica] = group
                self._begun[group] += 1
                return {"group": group, **plan}
        return None

    async def left(self, replica: str, group: str) -> None:
        """A replica has left its profile off, for a job or for its own end. It counts as no try."""
        self._begun[group] -= 1
        if self._fleet.retired(replica):
            self._at.pop(replica, None)

    async def failed(self, replica: str, group: str, error: dict[str, Any]) -> None:
        """A profile came to nothing, and would again: no policy reaches the quality, or the model can't be planned."""
        log.warning("no policy was found for %s: %s", group, error["message"])
        await self._end(replica, group, "failed", why=error["message"])

    async def found(self, replica: str, group: str, document: dict[str, Any]) -> None:
        """A profile's policy: the canary of its slot, if nothing was ever published there."""
        policy = parse_document(document)
        slot = slot_id(DEFAULT, policy.key)
        share = self._config().profiler.canary_percent
        why = f"profiled on the first {policy.provenance['prompts']} requests for {policy.target}"
        seen = await self._policies.read(slot)
        try:
            if not seen.revision:
                await self._policies.publish(seen, document, WHO, why, share)
        except LostRace as error:
            # Somebody has published meanwhile: theirs stays.
            log.info("%s", error.message)
        await self._end(replica, group, "profiled", slot=slot, calls=policy.expected["calls"])

    async def _end(self, replica: str, group: str, kind: str, **told: Any) -> None:
        # The prompts are the clients' own: no longer than they are needed.
        await self._store.end(group, {"end": kind})
        self._at.pop(replica, None)
        event = {"group": group, **told, "at": round(time.time(), 3)}
        await self._events.tell(Event(kind, event))
