"""How many replicas are wanted: the promise about waits over random queues, closed cases, and Serve's own machinery
around the policy as the shipped Serve file names it."""

from __future__ import annotations

import heapq
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from ray.serve._private.autoscaling_state import _resolve_policy_callable
from ray.serve._private.common import DeploymentID, TimeStampedValue
from ray.serve.autoscaling_policy import _apply_app_level_autoscaling_config
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

from warpcache_ray.config import MOST_REPLICAS
from warpcache_ray.serving.autoscaling import TargetWait, Work, newest

REPLICA, INGRESS = DeploymentID("Replica", "app"), DeploymentID("Ingress", "app")
IDLE = Work(0, 0, 0, 0, costs_known=1, model_known=1, ranks=1, gpu_second_price=0)
COSTS = st.lists(st.floats(1, 500), max_size=50)


def work(queued: list[float], running: list[float] | None = None, **rest: float) -> Work:
    """What is told of jobs with these costs on single GPUs."""
    running = running or []
    told = IDLE._replace(queued_jobs=len(queued), queued_gpu_s=sum(queued))
    told = told._replace(running_jobs=len(running), remaining_gpu_s=sum(running))
    return told._replace(**rest)


def longest_wait(queued: list[float], running: list[float], replicas: int) -> float:
    """Until the last one is begun, first come first served."""
    free = running + [0.0] * (replicas - len(running))
    heapq.heapify(free)
    return max((heapq.heapreplace(free, free[0] + cost) + 0.0 for cost in queued), default=0.0)


@given(COSTS, COSTS, st.floats(10, 300), st.integers(0, 100))
def test_everyone_is_begun_in_time(
    queued: list[float], running: list[float], wait_s: float, target: int
) -> None:
    """With as many replicas as are wanted no job of the queue waits for longer, however many there are now; and there
    are never more than jobs, if there weren't before."""
    wanted = TargetWait(target_wait_s=wait_s).wanted(work(queued, running), target)
    if wanted or queued:
        assert longest_wait(queued, running, wanted) <= wait_s + 1e-6
    assert wanted <= max(target, len(queued) + len(running))


@given(COSTS, COSTS, st.integers(0, 100))
def test_who_is_at_work_stays(queued: list[float], running: list[float], target: int) -> None:
    """No replica is taken from a job."""
    policy = TargetWait(target_wait_s=60, warm_replicas=2)
    assert policy.wanted(work(queued, running), target) >= len(running) + 2


@pytest.mark.parametrize(
    ("target", "wanted"),
    [(1, 4), (3, 4), (4, 4), (7, 7), (8, 8), (9, 8), (20, 8)],
)
def test_there_is_a_calm_between(target: int, wanted: int) -> None:
    """Work for four replicas in the target time: four would do, and up to eight (half the time) may stay."""
    assert TargetWait(target_wait_s=100).wanted(work([10] * 40), target) == wanted


def test_a_job_that_is_longer_than_the_target_holds_one_replica() -> None:
    """Ten minutes of work don't become ten replicas; two such jobs want two."""
    policy = TargetWait(target_wait_s=60)
    assert policy.wanted(work([], [600]), 1) == 1
    assert policy.wanted(work([600], [600]), 1) == 2


def test_a_new_replica_has_what_is_left_after_its_start() -> None:
    """One has 100 s, each new one 40: 180 s of small jobs want two more."""
    slow = TargetWait(target_wait_s=100, startup_s=60)
    assert slow.wanted(work([5] * 36), 1) == 3
    assert TargetWait(target_wait_s=100).wanted(work([5] * 36), 1) == 2


def test_gpu_seconds_of_several_ranks() -> None:
    """A replica of eight does eight GPU-seconds in one."""
    told = work([10] * 40)._replace(ranks=8)
    assert TargetWait(target_wait_s=10).wanted(told._replace(queued_gpu_s=8 * 400), 1) == 40
    assert TargetWait(target_wait_s=100).wanted(told._replace(queued_gpu_s=8 * 400), 1) == 4


def test_unknown_costs_are_assumed() -> None:
    """Before a first job has ended its cost is the operator's guess."""
    told = work([1e-7] * 20, costs_known=0)
    assert TargetWait(target_wait_s=60, usual_job_s=30).wanted(told, 1) == 10


def test_no_more_than_they_may_cost() -> None:
    """Eight ranks at 0.001 a second are 28.8 an hour; without a price nothing binds."""
    queue = work([1000] * 50, ranks=8, queued_gpu_s=8 * 50_000)
    capped = TargetWait(target_wait_s=10, most_per_hour=100)
    assert capped.wanted(queue._replace(gpu_second_price=0.001), 1) == 3
    assert capped.wanted(queue, 1) == 50
    assert TargetWait(target_wait_s=10).wanted(work([1e3] * 500), 1) == MOST_REPLICAS


def test_an_idle_service_shrinks_to_its_warm_pool() -> None:
    """Which is none by default; but one has to tell what the model can make before any job can be taken in."""
    assert TargetWait(target_wait_s=10).wanted(IDLE, 3) == 0
    assert TargetWait(target_wait_s=10, warm_replicas=2).wanted(IDLE, 3) == 2
    assert TargetWait(target_wait_s=10).wanted(IDLE._replace(model_known=0), 0) == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"target_wait_s": 0}, "target_wait_s = 0 is not allowed; it must be above 0"),
        ({"target_wait_s": 9, "usual_job_s": -1}, "usual_job_s = -1"),
        ({"target_wait_s": 9, "most_per_hour": 0}, "most_per_hour = 0"),
        ({"target_wait_s": 9, "startup_s": 9}, "startup_s = 9 .* below target_wait_s = 9"),
        ({"target_wait_s": 9, "warm_replicas": -1}, "warm_replicas = -1 .* at least 0"),
    ],
)
def test_what_isnt_allowed(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        TargetWait(**arguments)


def context(name: str, target: int, config: AutoscalingConfig, *told: tuple[float, Work]) -> Any:
    """What Serve gives a policy of a deployment; each tells at a time of its own."""
    metrics: dict[str, dict[str, list[TimeStampedValue]]] = {}
    for teller, (at, figures) in enumerate(told):
        for metric, value in figures._asdict().items():
            metrics.setdefault(metric, {})[f"{name}#{teller}"] = [TimeStampedValue(at, value)]
    return SimpleNamespace(
        deployment_name=name,
        target_num_replicas=target,
        current_num_replicas=target,
        total_num_requests=0,
        raw_metrics=metrics,
        policy_state={},
        config=config,
    )


def shipped() -> tuple[Any, AutoscalingConfig]:
    """The policy of configs/toyworld-scaled.yaml as Serve's controller gets it, with Serve's delays around it."""
    path = Path(__file__).parents[2] / "configs" / "toyworld-scaled.yaml"
    (app,) = yaml.safe_load(path.read_text())["applications"]
    (replica,) = app["deployments"]
    named = AutoscalingPolicy(**app["autoscaling_policy"])
    policy = _apply_app_level_autoscaling_config(_resolve_policy_callable(named))
    return policy, AutoscalingConfig(**replica["autoscaling_config"])


def test_serve_wakes_replicas_at_once_by_what_the_ingress_tells() -> None:
    """From none, as many as are wanted, without a delay; the ingress stays as it is."""
    policy, config = shipped()
    told = context("Ingress", 1, config, (0.0, IDLE), (1.0, work([60] * 2)))
    counts, _ = policy({REPLICA: context("Replica", 0, config), INGRESS: told})
    assert counts == {REPLICA: 2}


def test_serve_waits_before_it_takes_replicas_away() -> None:
    """Its `downscale_delay_s` holds for what is wanted here."""
    policy, config = shipped()
    told = context("Ingress", 1, config, (0.0, IDLE))
    counts, _ = policy({REPLICA: context("Replica", 2, config), INGRESS: told})
    assert counts == {REPLICA: 2}
    at_once = AutoscalingConfig(min_replicas=0, max_replicas=2, downscale_delay_s=0)
    counts, _ = policy({REPLICA: context("Replica", 2, at_once), INGRESS: told})
    assert counts == {REPLICA: 1}


def test_without_news_all_stays() -> None:
    """An ingress that hasn't told yet, or a coordinator that is restarting, is no reason to change anything."""
    policy, config = shipped()
    contexts = {p: context(p.name, 1, config) for p in (REPLICA, INGRESS)}
    assert newest(contexts) is None
    assert policy(contexts)[0] == {}
