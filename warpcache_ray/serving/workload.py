"""How much work there is, in figures that Serve's autoscaling can be told: see `autoscaling`."""

from __future__ import annotations

from collections.abc import Collection

from warpcache_ray.config import ServiceConfig
from warpcache_ray.serving.admission import Rates, remaining
from warpcache_ray.serving.lifecycle import Job, Status


def workload(
    active: Collection[Job], rates: Rates, config: ServiceConfig, model_known: bool, now: float
) -> dict[str, float]:
    """The figures of the jobs that haven't ended, all numbers, as Serve wants them.

    `queued_gpu_s` and `remaining_gpu_s` are seconds × ranks that waiting and running jobs have yet to go. They are in
    proportion to each other, but guesses, until a first job has ended (`costs_known` 0). `model_known` 0: no replica
    has told yet what the model can make, without which no job can be taken in.
    """
    ranks = config.parallel.world_size
    waiting = [job for job in active if job.status is Status.QUEUED]
    running = [job for job in active if job.status is Status.RUNNING]
    return {
        "queued_jobs": float(len(waiting)),
        "queued_gpu_s": ranks * sum(rates.cost(job) * (1 - _kept(job)) for job in waiting),
        "running_jobs": float(len(running)),
        "remaining_gpu_s": ranks * sum(remaining(job, rates.cost, now) for job in running),
        "costs_known": float(rates.known),
        "model_known": float(model_known),
        "ranks": float(ranks),
        "gpu_second_price": config.gpu_second_price,
    }


def _kept(job: Job) -> float:
    """The share of the steps that the next attempt needn't make."""
    return job.checkpoint_step / job.total_steps if job.checkpoint_step and job.total_steps else 0.0
