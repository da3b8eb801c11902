"""Quality that gives way under load, where the operator and the client let it: the longer the queue, the cheaper the
point of the speed/quality front at which the next job is made; with the queue gone, as asked for.

What may be lowered, and how far: the operator's `adaptive_quality.quality_floor` names for each priority the lowest
quality that its jobs may get; a priority that isn't named keeps what it asks for. Requests for `exact` or with a policy
of their own are never lowered, nor is any below a `quality_floor` that it brings itself; one that brings that is
lowered down to there whatever it asks for, for its client allows it.

How far a job is lowered is decided when a replica first takes it, and stays: later attempts go on from its checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from warpcache_ray.config import Lossy, ServiceConfig
from warpcache_ray.serving.admission import PRIORITIES, Rates, expected_share, remaining
from warpcache_ray.serving.choices import Choice
from warpcache_ray.serving.lifecycle import Job, Status, with_policy
from warpcache_ray.serving.schemas import LADDER, VideoFields

PolicyFor = Callable[[Lossy], Choice]
"""The policy that a job would get for a quality."""


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


def lowered(
    job: Job,
    active: Iterable[Job],
    rates: Rates,
    replicas: int,
    config: ServiceConfig,
    now: float,
    policy_for: PolicyFor,
) -> Job:
    """A job as it is to be made, where `active` ones wait and run: as it was, where it isn't to be lowered, has begun
    before, or nobody knows yet how long jobs take."""
    floor, settings = job.request.get("quality_floor"), config.adaptive_quality
    if floor is None or job.priority not in settings.quality_floor:
        return job
    if job.attempts or not rates.known:
        return job
    steps = job.request.get("num_inference_steps") or 1
    own = expected_share(job.policy, steps)
    rungs = _rungs(job.request.get("quality"), floor, own, steps, policy_for)
    wait = wait_s(job, active, rates, replicas, now)
    chosen = choose([share for *_, share in rungs], own, wait, settings.target_wait_s)
    if chosen is None:
        return job
    quality, choice, _ = rungs[chosen]
    return replace(with_policy(job, choice.policy, choice.origin), lowered_to=quality)


def _rungs(
    asked: str | None, floor: Lossy, own: float, steps: int, policy_for: PolicyFor
) -> list[tuple[Lossy, Choice, float]]:
    """The qualities below what is asked for, with their policies and shares; none that costs more than one above it,
    for names say little of what is published for them. What isn't a named one may lie anywhere on the ladder, and isn't
    lowered to what costs as much."""
    first = LADDER.index(asked) + 1 if asked in LADDER else 0
    lower = LADDER[first : LADDER.index(floor) + 1]
    rungs: list[tuple[Lossy, Choice, float]] = []
    for quality in lower:
        choice, above = policy_for(quality), rungs[-1][2] if rungs else own
        share = expected_share(choice.policy, steps)
        if share <= above and (asked in LADDER or share < own):
            rungs.append((quality, choice, share))
    return rungs
