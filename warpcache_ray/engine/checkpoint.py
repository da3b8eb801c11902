"""A run's state between two steps, and going on from it through the unmodified pipeline."""

from __future__ import annotations

import copy
import functools
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from warpcache_ray.engine.instead import instead
from warpcache_ray.errors import InvalidRequest

_OF_THE_SCHEDULE = frozenset({"timesteps", "_internal_dict"})
"""What `set_timesteps` makes anew and the configuration holds."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A run after `step` of `total` steps: latents, what the solver remembers, state of the random generator."""

    step: int
    total: int
    latents: Tensor
    solver: dict[str, Any]
    generator: Tensor

    def to_bytes(self) -> bytes:
        """As torch saves it."""
        buffer = io.BytesIO()
        torch.save(asdict(self), buffer)
        return buffer.getvalue()

    @staticmethod
    def from_bytes(data: bytes) -> Checkpoint:
        """Reads what `to_bytes` gave; nothing in it is run.

        Raises:
            InvalidRequest: it is something else.
        """
        try:
            return Checkpoint(**torch.load(io.BytesIO(data), weights_only=True))
        except Exception as error:
            raise InvalidRequest(f"checkpoint: not one of ours ({error})", "checkpoint") from error


def capture(scheduler: Any, step: int, total: int, latents: Tensor, rng: Tensor) -> Checkpoint:
    """The state after `step` steps. Tensors are shared, not copied: solvers replace theirs, they don't write into
    them."""
    kept = {name: value for name, value in vars(scheduler).items() if name not in _OF_THE_SCHEDULE}
    solver = {name: copy.copy(value) for name, value in kept.items() if _plain(value)}
    return Checkpoint(step, total, latents, solver, rng)


def _plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_plain, value))
    return value is None or isinstance(value, (Tensor, int, float, str))


@dataclass(slots=True)
class Resumption:
    """A run that takes up the schedule after `step` steps. `whole` is its scheduler as it stands at the start of a
    whole run, known once the pipeline has set its timesteps."""

    step: int
    whole: Any = field(default=None)

    def begin(self, scheduler: Any) -> None:
        """At the first denoiser call: the pipeline has taken the steps that it is to make, and the solver, which counts
        all of them, gets all back."""
        if len(scheduler.timesteps) < len(self.whole.timesteps):
            scheduler.timesteps = self.whole.timesteps


@contextmanager
def resumed(pipeline: Any, checkpoint: Checkpoint) -> Iterator[Resumption]:
    """Within, a run of the pipeline makes the steps after `checkpoint.step` alone, with its solver as it was. The
    latents go to the pipeline as its argument `latents`."""
    scheduler, resumption = pipeline.scheduler, Resumption(checkpoint.step)
    set_timesteps = scheduler.set_timesteps

    # Pipelines read its signature.
    @functools.wraps(set_timesteps)
    def set_rest(*args: Any, **kwargs: Any) -> None:
        set_timesteps(*args, **kwargs)
        if len(scheduler.timesteps) != checkpoint.total:
            raise ValueError(
                f"checkpoint: of {checkpoint.total} steps, the run has {len(scheduler.timesteps)}"
            )
        resumption.whole = _bare(scheduler)
        vars(scheduler).update({k: copy.copy(v) for k, v in checkpoint.solver.items()})
        scheduler.timesteps = scheduler.timesteps[checkpoint.step :]

    with instead(scheduler, "set_timesteps", set_rest):
        yield resumption


def _bare(scheduler: Any) -> Any:
    """A copy without the method that is replaced on the instance."""
    twin = copy.copy(scheduler)
    del twin.set_timesteps
    return copy.deepcopy(twin)
