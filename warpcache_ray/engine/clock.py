"""Where in its run a denoiser call stands, for pipelines that say so and for those that don't."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from warpcache_ray.core.types import Course, Step
from warpcache_ray.engine.branches import Branches
from warpcache_ray.engine.solver import output_weights
from warpcache_ray.models import adapter_for, pipelines
from warpcache_ray.models.adapter import ModelAdapter
from warpcache_ray.models.seam import Announcement

BOTH = "cond_uncond"
"""Both branches in one call."""


@dataclass(slots=True)
class StepClock:
    """Tells step and run of each call from the announcement, else from the pipeline's scheduler, else from the
    timesteps. `runs` counts up when a new run begins."""

    pipeline: Any | None = None
    runs: int = 0
    _timesteps: Any = None
    _solver: Any = None
    _course: Course | None = None
    _weights: dict[tuple[float, ...], tuple[float, ...] | None] = field(default_factory=dict)
    _value: float | None = None
    _index: int = 0
    _branches: Branches = field(default_factory=Branches)
    _seen: set[str] = field(default_factory=set)

    def tick(
        self, said: Announcement, timestep: Tensor | None, second: bool = False, text: Any = None
    ) -> Step:
        """The step of the call that begins now; `second`: a call of the pipeline's second transformer; `text`: what
        tells its branch where nothing is announced."""
        if self.pipeline is None:
            return self._counted(said, timestep, text)
        step = self._scheduled(said, self.pipeline.scheduler, timestep, text)
        scale = getattr(self.pipeline, "_guidance_scale_2", None) if second else None
        if scale is None or step.course is None or step.course.guidance is None:
            return step
        return replace(step, course=replace(step.course, guidance=scale))

    def _scheduled(
        self, said: Announcement, scheduler: Any, timestep: Tensor | None, text: Any
    ) -> Step:
        # Every pipeline call sets its timesteps anew, so another tensor is another run.
        if self._timesteps is not scheduler.timesteps:
            self._timesteps = scheduler.timesteps
            self._course = self._read_course(scheduler)
            self._branches = Branches()
            self.runs += 1
        index = said.step_index
        if index is None:
            index = self._step_index(scheduler, timestep)
        sigma = said.sigma
        if sigma is None and self._course is not None:
            # Not from the scheduler's tensor: on a GPU each reading would wait for all that is queued there.
            sigma = self._course.sigmas[index]
        total = said.total or len(scheduler.timesteps)
        # A run that takes up the schedule in its middle counts its steps from there.
        course = self._course if total == len(scheduler.timesteps) else None
        branch = said.branch or self._unannounced(index, text)
        return Step(index, total, sigma, branch, course)

    def _unannounced(self, index: int, text: Any) -> str:
        adapter = self._adapter
        if self.guided and adapter is not None and adapter.together:
            return BOTH
        return self._branches.of(index, text, self.guided)

    def _step_index(self, scheduler: Any, timestep: Tensor | None) -> int:
        if hasattr(scheduler, "step_index"):
            return scheduler.step_index or 0
        # Solvers of one step (DDIM) keep no count.
        assert timestep is not None
        return int((scheduler.timesteps - _value(timestep)).abs().argmin())

    @property
    def _adapter(self) -> ModelAdapter | None:
        transformer: Any = getattr(self.pipeline, "transformer", None)
        return adapter_for(transformer)

    @property
    def guided(self) -> bool:
        """The run at hand has an uncond beside cond at each step."""
        return pipelines.guided(self.pipeline)

    def _read_course(self, scheduler: Any) -> Course | None:
        if not hasattr(scheduler, "sigmas"):
            return None
        # Models with distilled guidance have a scale too, but no second branch that it weighs.
        guidance = self._guidance_scale() if self.guided else None
        course = Course(tuple(scheduler.sigmas.tolist()), guidance, switch=self._switch(scheduler))
        if self._solver is not scheduler:
            self._solver = scheduler
            self._weights.clear()
        if course.sigmas not in self._weights:
            self._weights[course.sigmas] = output_weights(scheduler)
        return replace(course, weights=self._weights[course.sigmas])

    def _guidance_scale(self) -> float | None:
        scale = pipelines.guidance_scale(self.pipeline)
        adapter = self._adapter
        return scale if scale is None or adapter is None else scale + adapter.guidance

    def _switch(self, scheduler: Any) -> int | None:
        """Wan 2.2's first expert has the timesteps down to its boundary."""
        ratio = getattr(self.pipeline, "config", {}).get("boundary_ratio")
        if ratio is None:
            return None
        boundary: float = ratio * scheduler.config.num_train_timesteps
        return int((scheduler.timesteps >= boundary).sum())

    def _counted(self, said: Announcement, timestep: Tensor | None, text: Any) -> Step:
        value = None if timestep is None else _value(timestep)
        index = said.step_index if said.step_index is not None else self._next_index(value)
        branch = said.branch or self._branches.of(index, text, guided=False)
        again = index == self._index and branch in self._seen and value == self._value
        backwards = index < self._index or (
            value is not None and self._value is not None and value > self._value
        )
        if not self.runs or again or backwards:
            self.runs += 1
            index = said.step_index or 0
            self._seen, self._branches = set(), Branches()
            branch = said.branch or self._branches.of(index, text, guided=False)
        if value != self._value or index != self._index:
            self._seen = set()
        self._value, self._index = value, index
        self._seen.add(branch)
        return Step(index, said.total, said.sigma, branch)

    def _next_index(self, value: float | None) -> int:
        return self._index if value == self._value else self._index + 1


def _value(timestep: Tensor) -> float:
    """The timestep of what is noisiest: where each token has its own, those of a given image have none."""
    return float(torch.as_tensor(timestep).max())
