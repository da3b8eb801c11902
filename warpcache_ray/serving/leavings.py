"""What jobs leave in storage, and how it is taken away."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from warpcache_ray.config import ServiceConfig
from warpcache_ray.serving.artifacts import Artifacts
from warpcache_ray.serving.checkpoints import Checkpoints
from warpcache_ray.serving.lifecycle import Job

AT_ONCE = 2


def forget_artifacts(config: ServiceConfig, job: Job) -> bool:
    """Takes away the videos of all attempts and the image; False if some may be left."""
    # They lie elsewhere, if the place was changed since.
    kept = [url for url in (job.result.get("path"), job.image) if url]
    places = {config.artifacts, *(url.rsplit("/", 2)[0] for url in kept)}
    return all([Artifacts(place).forget(job.id) for place in sorted(places)])


def forget_checkpoints(config: ServiceConfig, job: Job) -> bool:
    """Takes away those of all attempts; False if some may be left."""
    return not config.checkpoint_every or Checkpoints.of(config).forget(job.id)


def forget_all(config: ServiceConfig, job: Job) -> bool:
    """Takes away whatever there is of a job; False if something may be left."""
    return all([forget_artifacts(config, job), forget_checkpoints(config, job)])


class Leavings:
    """Takes things away by threads of its own: storage may be slow or hang, and others need theirs."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="leavings")

    def begin(self, forget: Callable[[ServiceConfig, Job], bool], *of: Any) -> asyncio.Future[bool]:
        """Begins as soon as a thread is free, whether anybody waits for it or not."""
        return asyncio.get_running_loop().run_in_executor(self._threads, forget, *of)
