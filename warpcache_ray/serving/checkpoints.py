"""The checkpoints of running jobs, as artifacts."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

from warpcache_ray.config import ServiceConfig
from warpcache_ray.errors import ArtifactGone
from warpcache_ray.serving.artifacts import Artifacts

if TYPE_CHECKING:
    from warpcache_ray.engine.checkpoint import Checkpoint

log = logging.getLogger(__name__)

CLOSE_S = 1.0


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """A folder per job at `url`, in it `FENCE-STEP-MODEL.pt`: with another model nothing goes on from there."""

    url: str
    model: str

    @classmethod
    def of(cls, config: ServiceConfig) -> Checkpoints:
        """Those of the model that a configuration serves."""
        return cls(config.checkpoints, config.model.version)

    def write(self, job: str, fence: int, step: int, data: bytes) -> None:
        """Keeps a checkpoint in place of the attempt's older ones. What lies there is whole at any time."""
        self._artifacts.write(job, f"{fence}-{step}-{self.model}.pt", data)
        for old in self._places(job):
            if old.fence == fence and old.step < step:
                self._artifacts.artifact(job, old.name).remove()

    def newest(self, job: str) -> bytes | None:
        """The checkpoint after most steps, whichever attempt made it; None if there is none."""
        for place in sorted(self._places(job), key=lambda place: place.step, reverse=True):
            # A late attempt may take it away meanwhile, having written a newer one.
            with suppress(ArtifactGone):
                return self._artifacts.artifact(job, place.name).read()
        return None

    def forget(self, job: str) -> bool:
        """Forgets all of a job's. Where they can't be taken away, they stay, with a warning and False."""
        return self._artifacts.forget(job)

    @property
    def _artifacts(self) -> Artifacts:
        return Artifacts(self.url)

    def _places(self, job: str) -> list[_Place]:
        names = [name for name in self._artifacts.names(job) if name.endswith(".pt")]
        parts = [PurePosixPath(name).stem.split("-") for name in names]
        found = zip(names, parts, strict=True)
        return [_Place(n, int(f), int(s)) for n, (f, s, model) in found if model == self.model]


class _Place(NamedTuple):
    name: str
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

    def keep(self, checkpoint: Checkpoint) -> None:
        """Writes a checkpoint, whatever time it takes: nothing comes after it."""
        wait([self._writing] if self._writing else [])
        self._write(checkpoint)

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


@dataclass(slots=True)
class Pocket:
    """Keeps the checkpoint of what isn't a job in memory, if it is left off."""

    data: bytes | None = None
    kept: int | None = None
    count: int = 0

    def offer(self, checkpoint: Callable[[], Checkpoint]) -> None:
        """Takes none: what is lost is made anew."""

    def keep(self, checkpoint: Checkpoint) -> None:
        """Takes the last one."""
        self.data = checkpoint.to_bytes()

    def close(self) -> None:
        """Has nothing to wait for."""
