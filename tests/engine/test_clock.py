from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from warpcache_ray.engine.clock import StepClock
from warpcache_ray.models.seam import Announcement


def scheduler(steps: int, index: int | None = None) -> Any:
    timesteps = torch.linspace(1000, 1, steps)
    return SimpleNamespace(timesteps=timesteps, step_index=index, sigmas=timesteps / 1000)


def test_announced_step_wins() -> None:
    """What the pipeline says is taken as it is."""
    clock = StepClock(SimpleNamespace(scheduler=scheduler(10)))
    step = clock.tick(Announcement("cond", 4, 10, 0.5), None)
    assert (step.index, step.total, step.sigma) == (4, 10, 0.5)


def test_silent_pipeline_is_read_from_its_scheduler() -> None:
    """Index, total and sigma come from the scheduler; before its first step the index is 0."""
    pipe = SimpleNamespace(scheduler=scheduler(10))
    clock = StepClock(pipe)
    assert clock.tick(Announcement("cond"), None).index == 0
    pipe.scheduler.step_index = 3
    step = clock.tick(Announcement("cond"), None)
    assert (step.index, step.total) == (3, 10)
    assert step.sigma == float(pipe.scheduler.sigmas[3])


def test_a_silent_pipeline_with_guidance_calls_cond_first() -> None:
    """The second call of a step is uncond's; a step begins with each index, and with each run."""
    pipe = SimpleNamespace(scheduler=scheduler(10), do_classifier_free_guidance=True)
    clock = StepClock(pipe)
    branches = [clock.tick(Announcement(), None).branch for _ in range(2)]
    pipe.scheduler.step_index = 1
    branches.append(clock.tick(Announcement(), None).branch)
    pipe.scheduler = scheduler(10, 1)
    branches.append(clock.tick(Announcement(), None).branch)
    assert branches == ["cond", "uncond", "cond", "cond"]
    pipe.do_classifier_free_guidance = False
    assert clock.tick(Announcement(), None).branch == "cond"


def test_new_timesteps_are_a_new_run() -> None:
    """A run that starts at the very step where the last one died is still another run."""
    pipe = SimpleNamespace(scheduler=scheduler(10, 3))
    clock = StepClock(pipe)
    clock.tick(Announcement("cond"), None)
    clock.tick(Announcement("uncond"), None)
    assert clock.runs == 1
    pipe.scheduler = scheduler(10, 3)
    clock.tick(Announcement("cond"), None)
    assert clock.runs == 2


def test_bare_transformer_counts_timesteps() -> None:
    """Each new timestep is a step, for all branches; time that rises or repeats in a branch is a new run."""
    clock = StepClock()

    def tick(branch: str, value: float) -> tuple[int, int]:
        return clock.tick(Announcement(branch), torch.tensor([value])).index, clock.runs

    assert [tick("cond", 900), tick("uncond", 900)] == [(0, 1), (0, 1)]
    assert [tick("cond", 600), tick("uncond", 600)] == [(1, 1), (1, 1)]
    assert tick("cond", 900) == (0, 2)
    assert tick("cond", 900) == (0, 3)


def test_a_run_from_the_middle_of_the_schedule_has_no_course() -> None:
    """Its steps count from where it began, the schedule's from its start: what is planned would be another run."""
    clock = StepClock(SimpleNamespace(scheduler=scheduler(10)))
    assert clock.tick(Announcement("cond", 0, 10), None).course is not None
    assert clock.tick(Announcement("cond", 0, 6), None).course is None
