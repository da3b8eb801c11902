"""How many replicas there should be, as policies that a Serve file names:

    autoscaling_policy:                  # of the application
      policy_function: warpcache_ray.serving.autoscaling:TargetWait
      policy_kwargs: {target_wait_s: 120}
    args: {replicas: auto, …}
    deployments:
      - name: Replica
        autoscaling_config: {min_replicas: 0, max_replicas: 8}

The ingress answers at once, so Serve sees no load at the replicas. The ingress tells it (`record_autoscaling_stats`)
what the coordinator knows of the queue (`workload`), also while there is no replica: that is why the policy is the
application's, to which Serve gives the contexts of all deployments. Bounds, delays and factors are Serve's own
(`autoscaling_config`), applied to what a policy wants.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from ray.serve.config import AutoscalingContext

from warpcache_ray.config import MOST_REPLICAS

REPLICA = "Replica"
CALM = 0.5
"""Replicas are taken away only where those that stay would keep so much of the target."""


class Work(NamedTuple):
    """What `workload` tells."""

    queued_jobs: float
    queued_gpu_s: float
    running_jobs: float
    remaining_gpu_s: float
    costs_known: float
    model_known: float
    ranks: float
    gpu_second_price: float


@dataclass(frozen=True, kw_only=True)
class TargetWait:
    """As many replicas as have every waiting job started within `target_wait_s`, by what the jobs will cost: their
    size, and the share of the denoiser's calls that their policy makes. A job whose cost isn't known, as none has ended
    yet, is taken to hold a replica for `usual_job_s`.

    Replicas that are at work stay, with `warm_replicas` idle ones beside them; an idle service shrinks to those, which
    are none by default, or to Serve's `min_replicas`. All together cost no more than `most_per_hour`, in the currency
    of the service's `gpu_second_price`: then jobs wait. (Serve's `min_replicas` come first.) A new replica takes
    `startup_s` to load its model, and has the rest of the time for what waits.

    Raises:
        ValueError: names the argument, its value and what is allowed.
    """

    target_wait_s: float
    startup_s: float = 0.0
    warm_replicas: int = 0
    usual_job_s: float = 60.0
    most_per_hour: float = math.inf

    def __post_init__(self) -> None:
        for name in ("target_wait_s", "usual_job_s", "most_per_hour"):
            if not getattr(self, name) > 0:
                said = f"{name} = {getattr(self, name)!r} is not allowed"
                raise ValueError(f"{said}; it must be above 0")
        if not 0 <= self.startup_s < self.target_wait_s:
            said = f"startup_s = {self.startup_s!r} is not allowed"
            raise ValueError(f"{said}; it must be below target_wait_s = {self.target_wait_s!r}")
        if self.warm_replicas < 0:
            raise ValueError(
                f"warm_replicas = {self.warm_replicas!r} is not allowed; it must be at least 0"
            )

    def __call__(
        self, contexts: Mapping[Any, AutoscalingContext]
    ) -> tuple[dict[Any, int], dict[Any, dict[str, Any]]]:
        """What Serve asks at every turn; no answer for a deployment leaves it as it is."""
        work = newest(contexts)
        if work is None:
            return {}, {}
        return {
            place: self.wanted(work, context.target_num_replicas)
            for place, context in contexts.items()
            if context.deployment_name == REPLICA
        }, {}

    def wanted(self, work: Work, target: int) -> int:
        """How many there should be where there are, or are to be, `target`."""
        held, calm = self.held(work, self.target_wait_s), CALM * self.target_wait_s
        missing = _whole(held - target * self.target_wait_s, self.target_wait_s - self.startup_s)
        if missing > 0:
            jobs = int(work.queued_jobs + work.running_jobs)
            count = max(target, min(target + missing, jobs))
        else:
            count = min(target, _whole(self.held(work, calm), calm))
        count = max(count, int(work.running_jobs) + self.warm_replicas, int(not work.model_known))
        return int(min(count, self.affordable(work), MOST_REPLICAS))

    def held(self, work: Work, within_s: float) -> float:
        """Replica-seconds that jobs take within a time in which each is begun: no job holds a replica for longer than
        it takes, or than that time. Replicas that have more than that are not all busy throughout while a job waits.

        From sums alone, n · min(mean, t) stands for the sum of min(cost, t), which is never more.
        """
        waiting = work.queued_gpu_s / work.ranks
        if not work.costs_known:
            waiting = work.queued_jobs * self.usual_job_s
        waiting = min(waiting, work.queued_jobs * within_s)
        return waiting + min(work.remaining_gpu_s / work.ranks, work.running_jobs * within_s)

    def affordable(self, work: Work) -> float:
        """As many as `most_per_hour` pays."""
        price = 3600 * work.gpu_second_price * work.ranks
        bounded = price > 0 and math.isfinite(self.most_per_hour)
        return self.most_per_hour // price if bounded else math.inf


def _whole(seconds: float, each_s: float) -> int:
    """How many it takes, of which each has so many seconds."""
    return math.ceil(seconds / each_s - 1e-9)


def newest(contexts: Mapping[Any, AutoscalingContext]) -> Work | None:
    """What was told last by any replica of any deployment; None where nothing was lately."""
    told: list[tuple[float, Work]] = []
    for context in contexts.values():
        metrics = context.raw_metrics or {}
        for teller, points in metrics.get("queued_jobs", {}).items():
            if points:
                values = (metrics[name][teller][-1].value for name in Work._fields)
                told.append((points[-1].timestamp, Work(*values)))
    return max(told, key=lambda each: each[0])[1] if told else None
