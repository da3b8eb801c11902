"""The Serve replica: drives its ranks, one job at a time, and speaks for them to the coordinator."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from warpcache_ray.config import ServiceConfig
from warpcache_ray.errors import WorkerLost
from warpcache_ray.serving import coordinator
from warpcache_ray.serving.ranks import Rank, rank_environment

CLAIM_S = 4.0
REPORT_S = 0.2
DRIVER_CPUS = 0.1


def bundles(config: ServiceConfig) -> list[dict[str, float]]:
    """The replica's placement group: the driver, then one bundle per rank."""
    rank: dict[str, float] = {"CPU": 1}
    if config.model.device == "cuda":
        rank["GPU"] = 1
    return [{"CPU": DRIVER_CPUS}, *[rank] * config.parallel.world_size]


class Replica:
    """Pulls jobs from the coordinator; takes the next one only when its ranks are quiet."""

    async def __init__(self, config: ServiceConfig) -> None:  # type: ignore[misc]  # Serve awaits it
        self.config = config
        self.id = f"replica_{uuid.uuid4().hex[:12]}"
        self.coordinator = coordinator.connect(config)
        self.failed: str | None = None
        self.ranks = [self._start_rank(i) for i in range(config.parallel.world_size)]
        self.info: dict[str, Any] = await self.ranks[0].info.remote()
        self.work = asyncio.create_task(self._work())

    async def check_health(self) -> None:
        """Serve's health check: fails once a rank or the work loop is lost, so that Serve starts anew."""
        if self.work.done():
            self.failed = self.failed or f"the work loop ended: {self.work.exception()!r}"
        if self.failed:
            raise RuntimeError(self.failed)

    def _start_rank(self, index: int) -> Any:
        group = ray.util.get_current_placement_group()
        place = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index + 1)
        actor = ray.remote(concurrency_groups={"control": 2})(Rank)
        return actor.options(
            num_cpus=1,
            num_gpus=1 if self.config.model.device == "cuda" else 0,
            scheduling_strategy=place,
            runtime_env={"env_vars": rank_environment(self.config)},
        ).remote(self.config)

    async def _work(self) -> None:
        while self.failed is None:
            try:
                attempt = await self.coordinator.claim.remote(self.id, self.info, CLAIM_S)
            except RayError:
                # A coordinator that restarts is back within a second.
                await asyncio.sleep(1.0)
                continue
            if attempt is not None:
                await self._run(attempt)

    async def _run(self, attempt: dict[str, Any]) -> None:
        relays = [
            asyncio.create_task(self._relay_progress(attempt)),
            asyncio.create_task(self._relay_cancel(attempt)),
        ]
        try:
            outcomes = await asyncio.gather(*[r.generate.remote(attempt) for r in self.ranks])
            result, error = outcomes[0]
            await self._report(attempt)
        except RayError as lost:
            result, error = {}, self._lose_ranks(lost).to_dict()
        finally:
            for relay in relays:
                relay.cancel()
            await asyncio.gather(*relays, return_exceptions=True)
        await self.coordinator.finish.remote(attempt["job_id"], attempt["fence"], result, error)

    def _lose_ranks(self, lost: RayError) -> WorkerLost:
        # The ranks live and die together: one that is left alone would wait for ever in a collective.
        self.failed = f"a rank was lost: {lost}"
        for rank in self.ranks:
            ray.kill(rank)
        return WorkerLost(f"a rank died: {type(lost).__name__}")

    async def _relay_progress(self, attempt: dict[str, Any]) -> None:
        while True:
            await self._report(attempt)
            await asyncio.sleep(REPORT_S)

    async def _report(self, attempt: dict[str, Any]) -> None:
        totals = await self.ranks[0].progress.remote(attempt["id"])
        job, fence = attempt["job_id"], attempt["fence"]
        if not await self.coordinator.report.remote(job, fence, totals):
            self._cancel(attempt)

    async def _relay_cancel(self, attempt: dict[str, Any]) -> None:
        while not await self.coordinator.cancelled.remote(
            attempt["job_id"], attempt["fence"], CLAIM_S
        ):
            continue
        self._cancel(attempt)

    def _cancel(self, attempt: dict[str, Any]) -> None:
        for rank in self.ranks:
            rank.cancel.remote(attempt["id"])
