"""Hands jobs to replicas: whose turn it is, under which policy, and at which quality."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from warpcache_ray.serving import adaptive, lifecycle
from warpcache_ray.serving.admission import Turn
from warpcache_ray.serving.choices import Choice
from warpcache_ray.serving.jobs import Jobs
from warpcache_ray.serving.lifecycle import Job, StaleFence, Status
from warpcache_ray.serving.line import Line

if TYPE_CHECKING:
    from warpcache_ray.serving.coordinator import Coordinator


class Dispatch:
    """Gives each replica that asks the next job."""

    def __init__(self, hub: Coordinator, jobs: Jobs) -> None:
        self._hub = hub
        self._jobs = jobs
        self._line = Line()

    def turns(self) -> list[Turn]:
        """The jobs that wait, in their order."""
        return self._line.turns(self._jobs, self._hub.rates, self._hub.config.client_weights)

    async def next(self, replica: str, info: dict[str, Any], until: float) -> Job | None:
        """The replica's next job, claimed; None when the (monotonic) time is over, or the replica retired."""
        fleet = self._hub.fleet

        def ready() -> bool:
            return self._jobs.count(Status.QUEUED) > 0 or fleet.retired(replica)

        while True:
            await self._jobs.until(ready, until - time.monotonic())
            turn = next(iter(self.turns()), None)
            if turn is None or fleet.retired(replica):
                return None
            # Another replica may be faster.
            with suppress(StaleFence):
                return await self._claim(turn, replica, info)

    async def _claim(self, turn: Turn, replica: str, info: dict[str, Any]) -> Job:
        hub = self._hub

        def claimed(job: Job) -> Job:
            job = self._lowered(hub.registry.settle(job, info), info)
            ranks = hub.config.parallel.world_size
            job = lifecycle.claim(job, replica, hub.epoch, time.time(), ranks)
            return replace(job, virtual_start=turn.start, virtual_finish=turn.finish)

        return await self._jobs.change(turn.job.id, claimed)

    def _lowered(self, job: Job, info: dict[str, Any]) -> Job:
        hub = self._hub

        def choose(quality: str) -> Choice:
            return hub.registry.choose({"quality": quality}, job.request, info, job.id)

        replicas = len(hub.fleet.live(hub.config.lease_s))
        return adaptive.lowered(
            job, self._jobs.active, hub.rates, replicas, hub.config, time.time(), choose
        )
