"""Where the checkpoints of running jobs are kept: any place that fsspec reaches."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple

import fsspec

if TYPE_CHECKING:
    from warpcache_ray.engine.checkpoint import Checkpoint

log = logging.getLogger(__name__)

CLOSE_S = 1.0


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """A folder per job at `url`, in it `FENCE-STEP-MODEL.pt`: with another model nothing goes on from there."""

    url: str
    model: str

    def write(self, job: str, fence: int, step: int, data: bytes) -> None:
        """Keeps a checkpoint in place of the attempt's older ones. What lies there is whole at any time."""
        system, folder = self._folder(job)
        system.makedirs(folder, exist_ok=True)
        place = f"{folder}/{fence}-{step}-{self.model}"
        system.pipe_file(f"{place}.part", data)
        system.mv(f"{place}.part", f"{place}.pt")
        for old in self._places(job):
            if old.fence == fence and old.step < step:
                system.rm(old.path)

    def newest(self, job: str) -> bytes | None:
        """The checkpoint after most steps, whichever attempt made it; None if there is none."""
        system, _ = self._folder(job)
        for place in sorted(self._places(job), key=lambda place: place.step, reverse=True):
            # A late attempt may take it away meanwhile, having written a newer one.
            with suppress(FileNotFoundError):
                data: bytes = system.cat_file(place.path)
                return data
        return None

    def forget(self, job: str) -> None:
        """Forgets all of a job's. Where they can't be taken away, they stay, with a warning."""
        try:
            system, folder = self._folder(job)
            if system.exists(folder):
                system.rm(folder, recursive=True)
        except Exception as error:
            # Each kind of storage has errors of its own.
            log.warning("checkpoints of %s stay: %s", job, error)

    def _folder(self, job: str) -> tuple[Any, str]:
        system, path = fsspec.core.url_to_fs(f"{self.url.rstrip('/')}/{job}")
        # Listings may be remembered, and others write here too.
        system.invalidate_cache()
        return system, path

    def _places(self, job: str) -> list[_Place]:
        system, folder = self._folder(job)
        if not system.exists(folder):
            return []
        names = [path for path in system.ls(folder, detail=False) if path.endswith(".pt")]
        parts = [PurePosixPath(path).stem.split("-") for path in names]
        found = zip(names, parts, strict=True)
        return [_Place(p, int(f), int(s)) for p, (f, s, model) in found if model == self.model]


class _Place(NamedTuple):
    path: str
    fence: int
    step: int


@dataclass(slots=True)
class Keeper:
    """Writes one attempt's checkpoints beside its run, which never waits for it: one that comes while another is
    written is left out, and one that can't be written is a warning."""

    checkpoints: Checkpoints
    job: str
    fence: int
    kept: int | None = None
    """The step of the newest one."""
    count: int = 0
    """How many there were."""
    _pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1))
    _writing: Future[None] | None = None

    def offer(self, checkpoint: Callable[[], Checkpoint]) -> None:
        """Takes a checkpoint, if there is time for it."""
        if self._writing is None or self._writing.done():
            self._writing = self._pool.submit(self._write, checkpoint())

    def close(self) -> None:
        """Takes nothing more; what is being written has a second to end."""
        wait([self._writing] if self._writing else [], timeout=CLOSE_S)
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _write(self, checkpoint: Checkpoint) -> None:
        try:
            self.checkpoints.write(self.job, self.fence, checkpoint.step, checkpoint.to_bytes())
            self.count += 1
            self.kept = checkpoint.step
        except Exception as error:
            # Each kind of storage has errors of its own.
            log.warning("no checkpoint of %s at step %d: %s", self.job, checkpoint.step, error)
