"""One generation under way: what happens at the boundaries of its steps, on every rank alike."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from warpcache_ray.engine.checkpoint import Checkpoint, capture
from warpcache_ray.engine.events import Control, StepEvent
from warpcache_ray.engine.ranks import Ranks
from warpcache_ray.engine.session import Dropped, Session, SessionStore
from warpcache_ray.engine.stats import Record
from warpcache_ray.errors import Cancelled, GenerationFailed

OnStep = Callable[[StepEvent], Control]


@dataclass(slots=True)
class Run:
    """Hears of each step's end from the pipeline, tells `on_step`, and does what the first rank's control word says.

    From a `checkpoint` it goes on: the pipeline counts through the steps before it, and none of them counts here.
    `epoch` is the one that the session's states belong to.
    """

    session: Session
    store: SessionStore
    ranks: Ranks
    generator: torch.Generator
    on_step: OnStep | None = None
    checkpoint: Checkpoint | None = None
    epoch: int = 0
    resumable: bool = True
    """From the middle of it a later one can go on."""
    began: float = field(default_factory=time.perf_counter)
    boundary: float | None = None
    latents: Tensor | None = None
    _step: int = 0
    _first: bool = True
    _told: int = 0
    _queued: Any = None

    def step_ended(
        self, pipe: Any, index: int, timestep: Tensor, tensors: dict[str, Any]
    ) -> dict[str, Any]:
        """diffusers' callback_on_step_end.

        Raises:
            ValueError: the checkpoint is of a run with another number of steps.
            Cancelled: the control word said so; no further step is started.
            GenerationFailed: the final latents hold what is no number.
        """
        step, total = index + 1, pipe.num_timesteps
        # A video in chunks has a run for each.
        self._first, self._step = self._first and step > self._step, step
        if self.checkpoint is not None and step <= self.checkpoint.step:
            return self._passed(self.checkpoint, pipe.scheduler, step, total)
        self.latents = tensors["latents"]
        self._keep_pace(self.latents)
        event = self._event(pipe.scheduler, step, total)
        last = step == total
        if last:
            # Decoding is the peak of memory; the features have served.
            self.store.drop(self.session)
        control = self.on_step(event) if self.on_step is not None else Control(self.epoch)
        heard = Control.read(self.ranks.broadcast(control.word))
        if heard.cancel:
            raise Cancelled(f"cancelled after step {step} of {total}")
        if heard.epoch > self.epoch:
            self.epoch = heard.epoch
            self.store.lose(self.session, Dropped.INVALIDATED)
        # Once, at the end: what isn't a number stays none, whatever was skipped since.
        if last and not self.latents.isfinite().all():
            raise GenerationFailed(
                "the final latents aren't finite: nan or inf in the denoiser's output"
            )
        return {}

    def _passed(
        self, checkpoint: Checkpoint, scheduler: Any, step: int, total: int
    ) -> dict[str, Any]:
        """After the last of the steps that an earlier run has made, its state takes the place of what they came to."""
        if checkpoint.total != total:
            raise ValueError(f"checkpoint: of {checkpoint.total} steps, the run has {total}")
        if step < checkpoint.step:
            return {}
        self.latents = checkpoint.restore(scheduler, self.generator)
        # It is of the first run, where a video is made in several.
        self.checkpoint = None
        # Where no step is left this is the last one's end.
        self.boundary = time.perf_counter() if step == total else None
        return {"latents": self.latents}

    def _event(self, scheduler: Any, step: int, total: int) -> StepEvent:
        now = time.perf_counter()
        since = self.boundary or self.session.first_call or self.began
        self.boundary = now
        latents, rng = self.latents, self.generator.get_state()
        assert latents is not None

        def checkpoint() -> Checkpoint:
            return capture(scheduler, step, total, latents, rng)

        decisions, stats = self._decisions(), self.session.stats
        kept = checkpoint if self._first and self.resumable else None
        return StepEvent(step - 1, total, now - since, decisions, stats, kept)

    def _decisions(self) -> tuple[Record, ...]:
        """Those since the last boundary."""
        fresh = tuple(self.session.stats.records[self._told :])
        self._told += len(fresh)
        return fresh

    def _keep_pace(self, latents: Tensor) -> None:
        """Lets the host run ahead of the device by one step at most: a cancellation reaches no further."""
        if not latents.is_cuda:
            return
        before, self._queued = self._queued, torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._queued.record()
        if before is not None:
            before.synchronize()
