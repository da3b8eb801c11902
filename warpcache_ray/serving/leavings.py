"""What jobs leave in storage, and how it is taken away: by threads, for storage may be slow."""

from __future__ import annotations

import asyncio

from warpcache_ray.config import ServiceConfig
from warpcache_ray.serving.artifacts import Artifact, Artifacts
from warpcache_ray.serving.checkpoints import Checkpoints
from warpcache_ray.serving.lifecycle import Job

AT_ONCE = 2


async def forget_artifacts(config: ServiceConfig, job: Job) -> None:
    """The videos of all attempts, and the image."""
    if "path" in job.result:
        # It lies elsewhere, if the place was changed since.
        await asyncio.to_thread(Artifact(job.result["path"]).remove)
    await asyncio.to_thread(Artifacts(config.artifacts).forget, job.id)


async def forget_checkpoints(config: ServiceConfig, job: Job) -> None:
    """Of all attempts."""
    if config.checkpoint_every:
        kept = Checkpoints(config.checkpoints, config.model.version)
        await asyncio.to_thread(kept.forget, job.id)


class Leavings:
    """Forgets all of jobs that are over and gone, while others go on; a few at once."""

    def __init__(self) -> None:
        self._few = asyncio.Semaphore(AT_ONCE)
        self._under_way: set[asyncio.Task[None]] = set()

    def forget(self, config: ServiceConfig, job: Job) -> None:
        """Begins with it."""
        task = asyncio.create_task(self._forget(config, job))
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    async def _forget(self, config: ServiceConfig, job: Job) -> None:
        async with self._few:
            await forget_artifacts(config, job)
            await forget_checkpoints(config, job)
