"""Where the checkpoints of running jobs are kept: any place that fsspec reaches."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import fsspec

if TYPE_CHECKING:
    from warpcache_ray.engine.checkpoint import Checkpoint

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """A folder per job at `url`, in it `FENCE-STEP.pt`."""

    url: str

    def write(self, job: str, fence: int, step: int, data: bytes) -> str:
        """Keeps a checkpoint; where it is. What lies there is whole at any time."""
        place = f"{self._folder(job)}/{fence}-{step}.pt"
        system, path = fsspec.core.url_to_fs(place)
        system.makedirs(system._parent(path), exist_ok=True)
        system.pipe_file(f"{path}.part", data)
        system.mv(f"{path}.part", path)
        return place

    def read(self, place: str) -> bytes:
        """A checkpoint's bytes.

        Raises:
            OSError: it isn't there.
        """
        system, path = fsspec.core.url_to_fs(place)
        data: bytes = system.cat_file(path)
        return data

    def delete(self, place: str) -> None:
        """Forgets one checkpoint, if it is there."""
        system, path = fsspec.core.url_to_fs(place)
        if system.exists(path):
            system.rm(path)

    def forget(self, job: str) -> None:
        """Forgets all of a job's."""
        system, path = fsspec.core.url_to_fs(self._folder(job))
        if system.exists(path):
            system.rm(path, recursive=True)

    def _folder(self, job: str) -> str:
        return f"{self.url.rstrip('/')}/{job}"


@dataclass(slots=True)
class Keeper:
    """Writes one attempt's checkpoints beside its run, which never waits for it: one that comes while another is
    written is left out, and one that can't be written is a warning."""

    checkpoints: Checkpoints
    job: str
    fence: int
    kept: dict[str, Any] | None = None
    """The newest one: `step` and `url`."""
    _pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1))
    _writing: Future[None] | None = None

    def offer(self, checkpoint: Callable[[], Checkpoint]) -> None:
        """Takes a checkpoint, if there is time for it."""
        if self._writing is None or self._writing.done():
            self._writing = self._pool.submit(self._write, checkpoint())

    def close(self) -> None:
        """Waits for what is being written."""
        self._pool.shutdown()

    def _write(self, checkpoint: Checkpoint) -> None:
        before, data = self.kept, checkpoint.to_bytes()
        try:
            url = self.checkpoints.write(self.job, self.fence, checkpoint.step, data)
            self.kept = {"step": checkpoint.step, "url": url}
            if before is not None:
                self.checkpoints.delete(before["url"])
        except Exception as error:
            # Each kind of storage has errors of its own.
            log.warning("no checkpoint of %s at step %d: %s", self.job, checkpoint.step, error)
