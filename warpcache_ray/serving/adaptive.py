"""Quality that gives way under load, where the operator and the client let it: the longer the queue, the cheaper the
point of the speed/quality front at which the next job is made; with the queue gone, as asked for.

What may be lowered, and how far: the operator's `adaptive_quality.quality_floor` names for each priority the lowest
quality that its jobs may get; a priority that isn't named keeps what it asks for. Requests for `exact` or with a policy
of their own are never lowered, nor is any below a `quality_floor` that it brings itself; one that brings that is
lowered down to there whatever it asks for, for its client allows it.

How far a job is lowered is decided when a replica first takes it, and stays: later attempts go on from its checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from warpcache_ray.config import ServiceConfig
from warpcache_ray.policy_spec import describe_policy
from warpcache_ray.serving.admission import PRIORITIES, Rates, expected_share, remaining
from warpcache_ray.serving.lifecycle import Job, Status
from warpcache_ray.serving.schemas import LADDER, VideoFields


def allowance(asked: VideoFields, config: ServiceConfig) -> dict[str, Any]:
    """What a job's request says of it: `quality_floor`, beside the `quality` that is asked for, if any; nothing where
    it isn't to be lowered."""
    operators = config.adaptive_quality.quality_floor.get(asked.priority)
    kept = asked.policy is not None or asked.quality not in (None, *LADDER)
    clients = asked.quality_floor or (None if kept else LADDER[-1])
    if operators is None or clients is None:
        return {}
    floor = min(operators, clients, key=LADDER.index)
    return {"quality_floor": floor} | ({"quality": asked.quality} if asked.quality else {})


def wait_s(job: Job, active: Iterable[Job], rates: Rates, replicas: int, now: float) -> float:
    """Seconds that the queue takes as far as the job's own class, which goes after the higher ones."""
    work, rank = 0.0, PRIORITIES.index(job.priority)
    for other in active:
        if other.status is Status.RUNNING:
            work += remaining(other, rates.cost, now)
        elif PRIORITIES.index(other.priority) <= rank:
            work += rates.cost(other)
    return work / max(1, replicas)


def choose(shares: Sequence[float], own: float, wait_s: float, target_s: float) -> int | None:
    """Which of the qualities that a job may be lowered to it gets, the best first: the first one at which all that wait
    would be done within the target, else the last; None for what it asks for, which does already, or where there is no
    other. `shares` and `own` are those of the denoiser's calls."""
    if wait_s <= target_s or not shares:
        return None
    enough = (i for i, share in enumerate(shares) if wait_s * share / own <= target_s)
    return next(enough, len(shares) - 1)


def lowered(job: Job, config: ServiceConfig, known: bool, wait_s: float) -> Job:
    """A job as it is to be made where those of its class would wait for so long; as it was, where it has begun before,
    and where that isn't `known` yet."""
    floor = job.request.get("quality_floor")
    if floor is None or not config.adaptive_quality.quality_floor or job.attempts or not known:
        return job
    asked = job.request.get("quality")
    first = LADDER.index(asked) + 1 if asked in LADDER else 0
    steps = job.request.get("num_inference_steps") or 1
    own = expected_share(job.policy, steps)
    rungs = [
        (q, describe_policy(config.quality_policy(q)))
        for q in LADDER[first : LADDER.index(floor) + 1]
    ]
    shares = {q: expected_share(policy, steps) for q, policy in rungs}
    # What isn't named may lie anywhere on the ladder; nothing is lowered to what costs more.
    rungs = [(q, policy) for q, policy in rungs if shares[q] < own or asked in LADDER]
    target = config.adaptive_quality.target_wait_s
    chosen = choose([shares[q] for q, _ in rungs], own, wait_s, target)
    if chosen is None:
        return job
    quality, policy = rungs[chosen]
    return replace(job, policy=policy, policy_summary={}, policy_version="", lowered_to=quality)
