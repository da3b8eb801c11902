"""Weights of a denoiser's outputs in the final latent, against real runs of the schedulers."""

from typing import Any

import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)

from warpcache_ray.engine.solver import output_weights

FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
SOLVERS = {
    "unipc": lambda: UniPCMultistepScheduler(**FLOW),
    "unipc of order 3": lambda: UniPCMultistepScheduler(solver_order=3, **FLOW),
    "dpm++": lambda: DPMSolverMultistepScheduler(**FLOW),
    "euler": lambda: FlowMatchEulerDiscreteScheduler(shift=3.0),
}
NOISY = {
    "sde": lambda: DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++", **FLOW),
    "stochastic euler": lambda: FlowMatchEulerDiscreteScheduler(stochastic_sampling=True),
}


def _ready(make: Any, steps: int) -> Any:
    scheduler = make()
    scheduler.set_timesteps(steps)
    return scheduler


def _run(scheduler: Any, outputs: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
    latent = start
    for output, timestep in zip(outputs, scheduler.timesteps, strict=True):
        latent = scheduler.step(output, timestep, latent, return_dict=False)[0]
    return latent


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("steps", [5, 8, 30])
def test_weights_are_those_of_a_real_run(name: str, steps: int) -> None:
    """The final latent is the first one and the weighted sum of whatever the denoiser gave."""
    scheduler = _ready(SOLVERS[name], steps)
    weights = output_weights(scheduler)
    assert weights is not None
    generator = torch.Generator().manual_seed(1)
    outputs = torch.randn(steps, 1, 4, 2, 3, generator=generator)
    start = torch.zeros(1, 4, 2, 3)
    expected = (torch.tensor(weights)[:, None, None, None, None] * outputs).sum(0)
    found = _run(scheduler, outputs, start)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("steps", [1, 20])
def test_eulers_are_differences_of_its_noise_levels(steps: int) -> None:
    """sigma_{i+1} - sigma_i."""
    scheduler = _ready(SOLVERS["euler"], steps)
    weights = output_weights(scheduler)
    assert weights == pytest.approx(scheduler.sigmas.diff().tolist(), abs=1e-6)


@pytest.mark.parametrize("name", SOLVERS)
def test_the_scheduler_is_left_as_it_was(name: str) -> None:
    """A run after the weights were found is as one without."""
    outputs = torch.randn(8, 1, 4, 2, 2, generator=torch.Generator().manual_seed(2))
    plain, asked = _ready(SOLVERS[name], 8), _ready(SOLVERS[name], 8)
    output_weights(asked)
    start = torch.ones(1, 4, 2, 2)
    assert torch.equal(_run(asked, outputs, start), _run(plain, outputs, start))


@pytest.mark.parametrize("name", NOISY)
def test_solvers_with_noise_have_none(name: str) -> None:
    """And the noise that they draw isn't taken from the user's generator."""
    scheduler = _ready(NOISY[name], 8)
    before = torch.get_rng_state()
    assert output_weights(scheduler) is None
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("error", [KeyError, AssertionError, RuntimeError])
def test_a_solver_that_fails_on_bare_numbers_has_none(error: type[Exception]) -> None:
    """Whatever it raises: no run may fail for being watched."""

    class Picky(FlowMatchEulerDiscreteScheduler):  # type: ignore[misc]
        def step(self, *args: Any, **kwargs: Any) -> Any:
            raise error

    assert output_weights(_ready(Picky, 8)) is None


def test_a_solver_that_is_not_linear_has_none() -> None:
    """Clipping what is predicted isn't linear."""

    class Clipped(FlowMatchEulerDiscreteScheduler):  # type: ignore[misc]
        def step(self, output: Any, *args: Any, **kwargs: Any) -> Any:
            return super().step(output.clamp(-0.5, 0.5), *args, **kwargs)

    assert output_weights(_ready(Clipped, 8)) is None
