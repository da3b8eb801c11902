"""What a replica does while there is no job: it leaves that off at its next step when there is one."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ray.exceptions import RayError, RayTaskError

from warpcache_ray.errors import WarpCacheError
from warpcache_ray.serving.artifacts import Artifact
from warpcache_ray.serving.pace import Watch, volume_of
from warpcache_ray.serving.ranks import Outcome

if TYPE_CHECKING:
    from warpcache_ray.serving.replica import Replica

log = logging.getLogger(__name__)

CALL_S = 4.0
LOOK_S = 0.5


class Pastime:
    """A replica's. What is done here is no attempt at a job and holds no lease; whatever comes of it, jobs go on."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self._left_off: tuple[str, bytes | None] = ("", None)
        """The job whose audit was left off, and from where it goes on."""

    async def spend(self) -> None:
        """Does what there is to do, if there is anything, until it is done or the replica is needed."""
        try:
            config = self._replica.config
            while config.audits.share and await self._audit():
                continue
            if config.profiler.auto_profile and not self._replica.failed:
                await self._profile()
        except RayTaskError:
            log.exception("nothing came of being idle")

    async def _audit(self) -> bool:
        """Makes one; whether there is time for another."""
        task = await self._ask("audits", "next")
        if task is None:
            return False
        job_id, served = task["job_id"], Artifact(task.pop("served"))
        try:
            latents = await asyncio.to_thread(served.read)
            image = await self._replica.image(task)
        except WarpCacheError as missing:
            await self._ask("audits", "failed", job_id, missing.to_dict())
            return True
        of, checkpoint = self._left_off
        begin = checkpoint if of == job_id else None
        result, error = await self._run("audit", task, latents, begin, image)
        if self._replica.failed:
            # Another one makes it anew.
            return False
        if error is not None:
            await self._ask("audits", "failed", job_id, error)
            return True
        if "left_at" in result:
            self._left_off = job_id, result["left_at"]
            await self._ask("audits", "left", job_id)
            return False
        await self._ask("audits", "found", job_id, result["psnr"], result["ssim"])
        await asyncio.to_thread(served.remove)
        return True

    async def _profile(self) -> None:
        task = await self._ask("profiles", "next")
        if task is None:
            return
        result, error = await self._run("profile", task)
        if self._replica.failed:
            return
        if error is not None:
            await self._ask("profiles", "failed", task["group"], error)
        elif "left" in result:
            await self._ask("profiles", "left", task["group"])
        else:
            await self._ask("profiles", "found", task["group"], result["document"])

    async def _run(self, method: str, task: dict[str, Any], *rest: Any) -> Outcome:
        """What the first rank gives of what all do, under a name of its own: a word to an earlier task isn't for it."""
        replica, task = self._replica, task | {"id": f"{method}:{uuid.uuid4().hex}"}
        beside = [
            asyncio.create_task(self._watch(task)),
            asyncio.create_task(self._leave_when_needed(task)),
        ]
        try:
            return await replica.together(method, task, *rest)
        except (RayError, TimeoutError) as lost:
            return {}, replica.lose_ranks(lost).to_dict()
        finally:
            for each in beside:
                each.cancel()
            await asyncio.gather(*beside, return_exceptions=True)

    async def _leave_when_needed(self, task: dict[str, Any]) -> None:
        replica = self._replica
        try:
            while not await self._ask("calls", "wait", replica.info, CALL_S):
                continue
        finally:
            # Also where nobody would tell any more.
            replica.ranks[0].hand_back.remote(task["id"])

    async def _watch(self, task: dict[str, Any]) -> None:
        # By what jobs have shown of the pace, of which nothing here is an example.
        pace = replace(self._replica.pace)
        watch = Watch(pace, volume_of(task.get("request", {})), time.monotonic())
        try:
            while True:
                totals = await self._replica.progress(task)
                watch.told(totals["step"], totals["total"], time.monotonic())
                watch.check(time.monotonic())
                await asyncio.sleep(LOOK_S)
        except (RayError, TimeoutError) as lost:
            # Killing the ranks ends what `_run` waits for.
            self._replica.lose_ranks(lost)

    async def _ask(self, part: str, method: str, *rest: Any) -> Any:
        return await self._replica.tell("upkeep", part, method, self._replica.id, *rest)
