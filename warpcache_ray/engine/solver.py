"""What a solver makes of a denoiser's outputs: how much each of them weighs in the final latent."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

_TOLERANCE = 1e-3


def output_weights(scheduler: Any) -> tuple[float, ...] | None:
    """d(final latent) / d(output of step i), by solving with unit outputs; None if the solver isn't linear in them.

    The weights of `scheduler`, whose timesteps are set, are found on a copy: it is left as it was. Euler gives
    sigma_{i+1} - sigma_i; multistep solvers (UniPC, DPM++) spread each output over several steps.
    """
    n = len(scheduler.timesteps)
    units = torch.eye(n)
    probe = torch.randn(n, generator=torch.Generator().manual_seed(0))
    outputs = torch.cat((units, probe[None], torch.zeros(1, n)))
    try:
        # Solvers with noise of their own draw it from the global generator, which is the user's.
        with torch.random.fork_rng(devices=[]):
            finals = _solve(scheduler, outputs)
    except Exception:
        # A solver that can't run on bare numbers can't be foreseen either, whatever it raises.
        return None
    weights, mixed, still = finals[:n], finals[n], finals[n + 1]
    agree = torch.allclose(probe.double() @ weights, mixed, atol=_TOLERANCE)
    fits = agree and float(still) == 0
    return tuple(weights.tolist()) if fits and bool(weights.isfinite().all()) else None


def _solve(scheduler: Any, outputs: Tensor) -> Tensor:
    solver = copy.deepcopy(scheduler)
    # Some keep their noise levels on the device of the run.
    solver.sigmas, solver.timesteps = solver.sigmas.cpu(), solver.timesteps.cpu()
    solver.set_begin_index(0)
    solver._step_index = None
    latent = torch.zeros(len(outputs), 1, 1, 1)
    for index, timestep in enumerate(solver.timesteps):
        output = outputs[:, index, None, None, None]
        # Not what a run may have put in its place.
        latent = type(solver).step(solver, output, timestep, latent, return_dict=False)[0]
    return latent.flatten().double()
