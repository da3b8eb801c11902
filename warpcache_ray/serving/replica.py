"""The Serve replica: drives its ranks, one job at a time, and speaks for them to the coordinator."""

from __future__ import annotations

import asyncio
import time
import uuid
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from warpcache_ray.config import ServiceConfig
from warpcache_ray.errors import NotFound, WorkerLost
from warpcache_ray.serving import coordinator
from warpcache_ray.serving.preflight import DRIVER_CPUS, RANK_CPUS
from warpcache_ray.serving.ranks import Rank, rank_environment

CLAIM_S = 4.0
REPORT_S = 0.2
RECONNECT_S = 0.5
PARTING_S = 5.0
"""When one rank has failed, the others fail with it as soon as this, or wait for it in vain."""

Outcome = tuple[dict[str, Any], dict[str, Any] | None]
"""What to publish, and the error if there is one."""


def bundles(config: ServiceConfig) -> list[dict[str, float]]:
    """The replica's placement group: the driver, then one bundle per rank."""
    rank: dict[str, float] = {"CPU": RANK_CPUS}
    if config.model.device == "cuda":
        rank["GPU"] = 1
    return [{"CPU": DRIVER_CPUS}, *[rank] * config.parallel.world_size]


class Replica:
    """Pulls jobs from the coordinator; takes the next one only when its ranks are quiet."""

    async def __init__(self, config: ServiceConfig) -> None:  # type: ignore[misc]  # Serve awaits it
        self.config = config
        self.id = f"replica_{uuid.uuid4().hex[:12]}"
        self.coordinator = coordinator.connect(serve.get_replica_context().app_name, config)
        self.failed: str | None = None
        self.ranks = [self._start_rank(i) for i in range(config.parallel.world_size)]
        shared = config.parallel.world_size > 1
        meeting = await self.ranks[0].open.remote() if shared else None
        self.info: dict[str, Any]
        self.info, *_ = await asyncio.gather(*[r.load.remote(meeting) for r in self.ranks])
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
            num_cpus=RANK_CPUS,
            num_gpus=1 if self.config.model.device == "cuda" else 0,
            scheduling_strategy=place,
            runtime_env={"env_vars": rank_environment(self.config)},
        ).remote(self.config, index)

    async def _work(self) -> None:
        while self.failed is None:
            attempt = await self._tell("claim", self.id, self.info, CLAIM_S)
            if attempt is not None:
                await self._run(attempt)

    async def _tell(self, method: str, *arguments: Any) -> Any:
        # A coordinator that died is back within a second; claims may be repeated, and all else is fenced.
        while True:
            try:
                return await getattr(self.coordinator, method).remote(*arguments)
            except RayActorError:
                await asyncio.sleep(RECONNECT_S)

    async def _run(self, attempt: dict[str, Any]) -> None:
        relays = [
            asyncio.create_task(self._relay_progress(attempt)),
            asyncio.create_task(self._relay_cancel(attempt)),
        ]
        try:
            result, error = await self._generate(attempt)
            await self._report(attempt)
        except (RayError, TimeoutError) as lost:
            result, error = {}, self._lose_ranks(lost).to_dict()
        finally:
            for relay in relays:
                relay.cancel()
            await asyncio.gather(*relays, return_exceptions=True)
        await self._finish(attempt, result, error)

    async def _generate(self, attempt: dict[str, Any]) -> Outcome:
        """What the first rank gives once all are through."""
        runs: list[asyncio.Future[Outcome]] = [
            asyncio.ensure_future(r.generate.remote(attempt)) for r in self.ranks
        ]
        for finished in asyncio.as_completed(runs):
            _, error = await finished
            if error:
                await asyncio.wait_for(asyncio.gather(*runs), PARTING_S)
        return runs[0].result()

    async def _finish(
        self, attempt: dict[str, Any], result: dict[str, Any], error: dict[str, Any] | None
    ) -> None:
        place = (attempt["job_id"], attempt["fence"])
        published = await self._about_job("finish", *place, result, error)
        if not published and "path" in result:
            Path(result["path"]).unlink(missing_ok=True)

    async def _about_job(self, method: str, *arguments: Any) -> Any:
        try:
            return await self._tell(method, *arguments)
        except RayTaskError as error:
            # A coordinator that lost its memory doesn't know the job: the attempt is void.
            if isinstance(error.cause, NotFound):
                return False
            raise

    def _lose_ranks(self, lost: Exception) -> WorkerLost:
        # The ranks live and die together: one that is left alone would wait for ever in a collective.
        self.failed = f"a rank was lost: {lost!r}"
        for rank in self.ranks:
            ray.kill(rank)
        return WorkerLost(f"a rank died: {type(lost).__name__}")

    async def _relay_progress(self, attempt: dict[str, Any]) -> None:
        step, moved = -1, time.monotonic()
        while True:
            try:
                now = await self._report(attempt)
            except (RayError, TimeoutError) as lost:
                # Killing the ranks ends `generate`, which is what `_run` waits for.
                self._lose_ranks(lost)
                return
            if now != step:
                step, moved = now, time.monotonic()
            if time.monotonic() - moved > self.config.step_timeout_s:
                self._lose_ranks(TimeoutError(f"no step in {self.config.step_timeout_s} s"))
                return
            await asyncio.sleep(REPORT_S)

    async def _report(self, attempt: dict[str, Any]) -> int:
        asked = self.ranks[0].progress.remote(attempt["id"])
        totals = await asyncio.wait_for(asked, self.config.lease_s)
        place = (attempt["job_id"], attempt["fence"])
        if not await self._about_job("report", *place, totals):
            self._cancel(attempt)
        step: int = totals["step"]
        return step

    async def _relay_cancel(self, attempt: dict[str, Any]) -> None:
        place = (attempt["job_id"], attempt["fence"])
        while await self._about_job("keeps_on", *place, CLAIM_S):
            continue
        self._cancel(attempt)

    def _cancel(self, attempt: dict[str, Any]) -> None:
        for rank in self.ranks:
            rank.cancel.remote(attempt["id"])
