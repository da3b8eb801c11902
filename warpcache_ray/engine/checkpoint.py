"""A run's state between two steps."""

from __future__ import annotations

import copy
import io
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

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

    def restore(self, scheduler: Any, generator: torch.Generator) -> Tensor:
        """Puts solver and generator back into this state; the latents."""
        vars(scheduler).update({name: copy.copy(value) for name, value in self.solver.items()})
        generator.set_state(self.generator)
        return self.latents.clone()

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
    """The state after `step` steps. The solver's tensors are shared, not copied: solvers replace theirs. Into the
    latents a pipeline (Kandinsky's) writes."""
    kept = {name: value for name, value in vars(scheduler).items() if name not in _OF_THE_SCHEDULE}
    solver = {name: copy.copy(value) for name, value in kept.items() if _plain(value)}
    return Checkpoint(step, total, latents.clone(), solver, rng)


def final(latents: Tensor, total: int) -> Checkpoint:
    """The state after the last of `total` steps: what is decoded."""
    return Checkpoint(total, total, latents, {}, torch.Generator().get_state())


def _plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_plain, value))
    return value is None or isinstance(value, (Tensor, int, float, str))
