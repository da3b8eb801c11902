"""The Serve replica: drives its ranks, one job at a time, and speaks for them to the coordinator."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from warpcache_ray.config import ServiceConfig
from warpcache_ray.errors import Cancelled, NotFound, Unavailable, WarpCacheError, WorkerLost
from warpcache_ray.serving import handles, logs
from warpcache_ray.serving.artifacts import Artifact, Artifacts
from warpcache_ray.serving.attempts import together
from warpcache_ray.serving.checkpoints import Checkpoints
from warpcache_ray.serving.lifecycle import Order
from warpcache_ray.serving.pace import Pace, Watch, volume_of
from warpcache_ray.serving.pastime import Pastime
from warpcache_ray.serving.preflight import DRIVER_CPUS, RANK_CPUS
from warpcache_ray.serving.ranks import Outcome, Rank, rank_environment

log = logging.getLogger(__name__)
serve_log = logging.getLogger("ray.serve")
"""What Serve shows of each replica."""
LOADED = "loaded %s in %.1f s; its weights take %d bytes on each rank"

CLAIM_S = 4.0
REPORT_S = 0.2
RECONNECT_S = 0.5
PARTING_S = 5.0
"""When one rank has failed, the others fail with it as soon as this, or wait for it in vain."""


def bundles(config: ServiceConfig) -> list[dict[str, float]]:
    """The replica's placement group: the driver, then one bundle per rank."""
    rank: dict[str, float] = {"CPU": RANK_CPUS}
    if config.model.device == "cuda":
        rank["GPU"] = 1
    return [{"CPU": DRIVER_CPUS}, *[rank] * config.parallel.world_size]


class Replica:
    """Pulls jobs from the coordinator; takes the next one only when its ranks are quiet."""

    async def __init__(self, config: ServiceConfig) -> None:  # type: ignore[misc]  # Serve awaits it
        logs.install(config)
        self.config = config
        self.id = f"replica_{uuid.uuid4().hex[:12]}"
        self.coordinator = handles.connect(serve.get_replica_context().app_name, config)
        self.failed: str | None = None
        self.draining = False
        self.attempt: dict[str, Any] | None = None
        self.pastime = Pastime(self)
        self.pace = Pace(config.slow_step_factor, config.slow_step_s, config.step_timeout_s)
        self.ranks = [self._start_rank(i) for i in range(config.parallel.world_size)]
        shared = config.parallel.world_size > 1
        meeting = await self.ranks[0].open.remote() if shared else None
        self.info: dict[str, Any]
        self.info, *_ = await asyncio.gather(*[r.load.remote(meeting) for r in self.ranks])
        serve_log.info(
            LOADED, config.model.path, self.info["load_seconds"], self.info["weight_bytes"]
        )
        self.work = asyncio.create_task(self._work())

    async def check_health(self) -> None:
        """Serve's health check: fails once a rank or the work loop is lost, so that Serve starts anew."""
        if self.work.done():
            self.failed = self.failed or f"the work loop ended: {self.work.exception()!r}"
        if self.failed:
            raise RuntimeError(self.failed)

    async def __del__(self) -> None:
        """Serve's graceful shutdown: no job is taken any more; the one at hand ends, or is handed back with a
        checkpoint after `drain_s`."""
        self.draining = True
        await self.tell("retire", self.id)
        if not self.work.done():
            await asyncio.wait([self.work], timeout=self.config.drain_s)
        if self.attempt is not None and self.failed is None:
            self.ranks[0].hand_back.remote(self.attempt["id"])
        await asyncio.wait([self.work])

    def _start_rank(self, index: int) -> Any:
        group = ray.util.get_current_placement_group()
        place = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index + 1)
        actor = ray.remote(concurrency_groups={"control": 2})(Rank)
        return actor.options(
            name=f"{self.config.name}-{self.id}-rank-{index}",
            namespace=handles.NAMESPACE,
            num_cpus=RANK_CPUS,
            num_gpus=1 if self.config.model.device == "cuda" else 0,
            scheduling_strategy=place,
            runtime_env={"env_vars": rank_environment(self.config)},
        ).remote(self.config, index)

    async def _work(self) -> None:
        while self.failed is None and not self.draining:
            self.attempt = await self.tell("claim", self.id, self.info, CLAIM_S)
            if self.attempt is not None:
                named = {"job": self.attempt["job_id"], "attempt": self.attempt["fence"]}
                with logs.about(**named, replica=self.id):
                    await self._run(self.attempt)
                self.attempt = None
            elif not self.draining:
                await self.pastime.spend()

    async def tell(self, method: str, *arguments: Any) -> Any:
        """What the coordinator answers, however long that takes."""
        # A coordinator that died is back within a second, as is its store; claims may be repeated, all else is fenced.
        while True:
            try:
                return await getattr(self.coordinator, method).remote(*arguments)
            except RayActorError:
                await asyncio.sleep(RECONNECT_S)
            except RayTaskError as error:
                if not isinstance(error.cause, Unavailable):
                    raise
                await asyncio.sleep(RECONNECT_S)

    async def _run(self, attempt: dict[str, Any]) -> None:
        relays = [
            asyncio.create_task(self._relay_progress(attempt)),
            asyncio.create_task(self._relay_control(attempt)),
        ]
        try:
            result, error = await self._generate(attempt)
            if self.failed is None:
                await self._report(attempt, await self.progress(attempt))
        except (RayError, TimeoutError) as lost:
            result, error = {}, self.lose_ranks(lost).to_dict()
        finally:
            for relay in relays:
                relay.cancel()
            await asyncio.gather(*relays, return_exceptions=True)
        if self.draining and error is not None and error["code"] == Cancelled.code:
            # A job that was told to end does so there.
            await self._about_job("hand_back", attempt["job_id"], attempt["fence"])
        else:
            await self._finish(attempt, result, error)

    async def _generate(self, attempt: dict[str, Any]) -> Outcome:
        """Only once all ranks are through is there room for the next job."""
        checkpoint = await self._checkpoint(attempt)
        try:
            image = await self.image(attempt)
        except WarpCacheError as missing:
            return {}, missing.to_dict()
        return await self.together("generate", attempt, checkpoint, image)

    async def together(self, method: str, *arguments: Any) -> Outcome:
        """What the first rank gives of a call that all make, once all are through."""
        runs: list[asyncio.Future[Outcome]] = [
            asyncio.ensure_future(getattr(rank, method).remote(*arguments)) for rank in self.ranks
        ]
        for finished in asyncio.as_completed(runs):
            _, error = await finished
            if error:
                return await self._part(runs, error)
        return runs[0].result()

    async def _part(self, runs: list[asyncio.Future[Outcome]], error: dict[str, Any]) -> Outcome:
        """Waits for the ranks beside the one that has failed: they fail with it, or wait for it in vain and are lost.
        Either way the job ends for the reason that the first one gave.

        Raises:
            RayError: one of them has died: that is why the first one lost its connection, and no fault of the job's.
        """
        try:
            await asyncio.wait_for(asyncio.gather(*runs), PARTING_S)
        except TimeoutError as lost:
            self.lose_ranks(lost)
        return {}, error

    async def _checkpoint(self, attempt: dict[str, Any]) -> bytes | None:
        """What the attempt goes on from, if there was one before it; read once, so that all ranks have the same."""
        if attempt["fence"] == 1:
            return None
        kept = Checkpoints.of(self.config)
        try:
            return await asyncio.to_thread(kept.newest, attempt["job_id"])
        except Exception as error:
            # Each kind of storage has errors of its own; the job can start anew.
            log.warning("checkpoints of %s can't be read: %s", attempt["job_id"], error)
            return None

    async def image(self, attempt: dict[str, Any]) -> bytes | None:
        """What the video is to begin with, if the request brought that; read once, so that all ranks have the same."""
        if attempt["image"] is None:
            return None
        return await asyncio.to_thread(Artifact(attempt["image"]).read)

    async def _finish(
        self, attempt: dict[str, Any], result: dict[str, Any], error: dict[str, Any] | None
    ) -> None:
        place = (attempt["job_id"], attempt["fence"])
        if "decisions" in result:
            await self._about_job("keep_decisions", *place, result.pop("decisions"))
        published = await self._about_job("finish", *place, result, error)
        if published is None:
            # Nobody knows the job any more.
            await asyncio.to_thread(Artifacts(self.config.artifacts).forget, attempt["job_id"])
        elif not published and "path" in result:
            await asyncio.to_thread(Artifact(result["path"]).remove)

    async def _about_job(self, method: str, *arguments: Any) -> Any:
        try:
            return await self.tell(method, *arguments)
        except RayTaskError as error:
            # A coordinator that lost its memory doesn't know the job: the attempt is void.
            if isinstance(error.cause, NotFound):
                return None
            raise

    def lose_ranks(self, lost: Exception) -> WorkerLost:
        """Ends all ranks, and with them the replica, for what has become of one."""
        # The ranks live and die together: one that is left alone would wait for ever in a collective.
        self.failed = self.failed or f"a rank was lost: {lost!r}"
        for rank in self.ranks:
            ray.kill(rank)
        return WorkerLost(f"a rank died: {type(lost).__name__}")

    async def _relay_progress(self, attempt: dict[str, Any]) -> None:
        watch = Watch(self.pace, volume_of(attempt["request"]), time.monotonic())
        telling = asyncio.create_task(asyncio.sleep(0))
        try:
            while True:
                totals = await self.progress(attempt)
                watch.told(totals["step"], totals["total"], time.monotonic())
                watch.check(time.monotonic())
                # The ranks are watched whether the coordinator listens or not.
                if telling.done():
                    telling = asyncio.create_task(self._report(attempt, totals))
                await asyncio.sleep(REPORT_S)
        except (RayError, TimeoutError) as lost:
            # Killing the ranks ends `generate`, which is what `_run` waits for.
            self.lose_ranks(lost)
        finally:
            telling.cancel()

    async def progress(self, attempt: dict[str, Any]) -> dict[str, Any]:
        """How far the ranks are; raises what has become of one."""
        asked = asyncio.gather(*[rank.progress.remote(attempt["id"]) for rank in self.ranks])
        patience = min(self.config.lease_s, self.config.slow_step_s)
        # Not wait_for: in Python 3.11 it forgets a cancellation that comes together with the answer.
        async with asyncio.timeout(patience):
            return together(await asked)

    async def _report(self, attempt: dict[str, Any], totals: dict[str, Any]) -> None:
        """Tells the coordinator how far the ranks are, and the ranks what it says to that."""
        place = (attempt["job_id"], attempt["fence"])
        try:
            control = await self._about_job("report", *place, totals, self.id, self.info)
        except RayError:
            # The next one says as much.
            log.exception("a report of %s wasn't taken", attempt["id"])
            return
        if control is None or control.cancel or control.epoch > totals["epoch"]:
            self._control(attempt, control)

    async def _relay_control(self, attempt: dict[str, Any]) -> None:
        place = (attempt["job_id"], attempt["fence"])
        epoch = attempt["epoch"]
        while True:
            control = await self._about_job("control", *place, epoch, CLAIM_S)
            if control is None or control.cancel or control.epoch > epoch:
                self._control(attempt, control)
            if control is None or control.cancel:
                return
            epoch = control.epoch

    def _control(self, attempt: dict[str, Any], control: Order | None) -> None:
        """The first rank's word counts for all. Without a coordinator that knows the job, it is over."""
        order = control or Order(cancel=True)
        self.ranks[0].control.remote(attempt["id"], order.epoch, order.cancel)
