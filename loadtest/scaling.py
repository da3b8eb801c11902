"""Autoscaling without a cluster: arrivals are replayed, second by second, against the very functions that Serve calls,
ours and Serve's default, each with Serve's own delays and bounds around it.

    python loadtest/scaling.py        # writes results/scaling.json and results/scaling.png beside it
"""

from __future__ import annotations

import json
import math
import random
import sys
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
from ray.serve import autoscaling_policy as serves
from ray.serve._private.common import DeploymentID, TimeStampedValue
from ray.serve.config import AutoscalingConfig, AutoscalingContext

from warpcache_ray.serving.autoscaling import REPLICA, TargetWait, Work

RESULTS = Path(__file__).parent / "results"
HOUR = 3600
TARGET_WAIT_S = 120.0
STARTUP_S = 90
"""Until a new replica has its model loaded."""
DRAIN_S = 20
"""How long a replica that goes may be at its job; then it hands it back."""
MIN_REPLICAS, MAX_REPLICAS = 1, 16
BOUNDS = {"min_replicas": MIN_REPLICAS, "max_replicas": MAX_REPLICAS}
LOOK_BACK_S = 30
"""Serve's default; it counts requests in the mean over so long."""
PLACE = DeploymentID(REPLICA, "simulated")


@dataclass(slots=True)
class Job:
    """Seconds since the beginning, and seconds that it holds a replica for."""

    at: float
    cost: float
    left: float
    started: float | None = None
    handed_back: int = 0


@dataclass(slots=True)
class Node:
    """One replica, from the moment that it's asked for."""

    ready_at: float
    job: Job | None = None
    drains_until: float | None = None


@dataclass(slots=True)
class Fleet:
    """The service, as of a second: what it has yet to do, and who does it."""

    waiting: deque[Job] = field(default_factory=deque)
    nodes: list[Node] = field(default_factory=list)

    @property
    def staying(self) -> list[Node]:
        """Those that aren't on their way out."""
        return [node for node in self.nodes if node.drains_until is None]

    @property
    def running(self) -> list[Job]:
        """Jobs that replicas are at."""
        return [node.job for node in self.nodes if node.job is not None]

    def resize(self, target: int, now: float, dice: random.Random) -> None:
        """As Serve does it: it knows who is starting, but not who is at work."""
        self.nodes += [Node(now + STARTUP_S) for _ in range(target - len(self.staying))]
        staying = sorted(self.staying, key=lambda node: (-max(now, node.ready_at), dice.random()))
        for node in staying[: max(0, len(staying) - target)]:
            node.drains_until = now + DRAIN_S

    def work(self, now: float) -> None:
        """One second."""
        for node in self.nodes:
            if (
                node.job is None
                and node.drains_until is None
                and node.ready_at <= now
                and self.waiting
            ):
                node.job = self.waiting.popleft()
                node.job.started = now if node.job.started is None else node.job.started
            if node.job is not None:
                node.job.left -= 1
                if node.job.left <= 0:
                    node.job = None
            if node.job is not None and node.drains_until is not None and node.drains_until <= now:
                node.job.handed_back += 1
                self.waiting.appendleft(node.job)
                node.job = None
        self.nodes = [n for n in self.nodes if n.drains_until is None or n.job is not None]


Policy = Callable[[dict[DeploymentID, AutoscalingContext]], tuple[dict[DeploymentID, int], Any]]


@dataclass(frozen=True)
class Contender:
    """A policy with its settings."""

    name: str
    policy: Policy
    config: AutoscalingConfig


QUICK = {"upscale_delay_s": 10.0, "downscale_delay_s": 300.0}


def ours() -> Contender:
    """`TargetWait`, as the application's policy."""
    policy = TargetWait(target_wait_s=TARGET_WAIT_S, startup_s=STARTUP_S)
    applied = serves._apply_app_level_autoscaling_config(policy)
    return Contender("TargetWait", applied, AutoscalingConfig(**BOUNDS, **QUICK))


def default(name: str, **settings: float) -> Contender:
    """Serve's own, which is told each job as a request that waits for a replica. (As it is, with an ingress that
    answers at once, it would see none.)"""
    single = serves._apply_autoscaling_config(serves.replica_queue_length_autoscaling_policy)

    def policy(contexts: dict[DeploymentID, AutoscalingContext]) -> Any:
        count, state = single(contexts[PLACE])
        return {PLACE: count}, {PLACE: state}

    return Contender(name, policy, AutoscalingConfig(**BOUNDS, **settings))


def contenders() -> list[Contender]:
    """Ours, Serve's default as it comes, and the same with one request per replica and our delays."""
    tuned = default("Serve's default, tuned", target_ongoing_requests=1, **QUICK)
    return [ours(), default("Serve's default"), tuned]


@dataclass(frozen=True)
class Run:
    """What became of a trace. `replicas` and `backlog` are of every minute."""

    jobs: int
    wait_p50_s: float
    wait_p95_s: float
    wait_max_s: float
    begun_in_time: float
    replica_hours: float
    busy: float
    most_replicas: int
    handed_back: int
    replicas: list[int]
    backlog_s: list[float]
    wait_s: list[float]


def simulate(trace: Sequence[tuple[float, float]], contender: Contender) -> Run:
    """Replays a trace of (seconds, cost in a replica's seconds), until all jobs are done."""
    jobs = [Job(at, cost, cost) for at, cost in trace]
    coming, fleet, dice = deque(jobs), Fleet(), random.Random(0)
    target, state, held, now = MIN_REPLICAS, {}, 0, 0
    counted: deque[int] = deque(maxlen=LOOK_BACK_S)
    replicas, backlog = [], []
    fleet.nodes = [Node(0) for _ in range(target)]
    with mock.patch.object(serves, "time", SimpleNamespace(time=lambda: float(now))):
        while coming or fleet.waiting or fleet.running or now % 60:
            while coming and coming[0].at <= now:
                fleet.waiting.append(coming.popleft())
            fleet.work(now)
            counted.append(len(fleet.waiting) + len(fleet.running))
            context = _context(
                fleet, contender.config, target, sum(counted) / len(counted), state, now
            )
            wanted, states = contender.policy({PLACE: context})
            state = (states or {}).get(PLACE, {})
            bounded = max(MIN_REPLICAS, min(MAX_REPLICAS, math.ceil(wanted.get(PLACE, target))))
            target = bounded
            fleet.resize(target, now, dice)
            held += len(fleet.nodes)
            if now % 60 == 0:
                replicas.append(len(fleet.nodes))
                backlog.append(sum(job.left for job in fleet.waiting))
            now += 1
    waits = np.array([job.started - job.at for job in jobs])
    return Run(
        len(jobs),
        *(round(float(np.percentile(waits, p)), 1) for p in (50, 95, 100)),
        round(float(np.mean(waits <= TARGET_WAIT_S)), 4),
        round(held / HOUR, 2),
        round(sum(job.cost for job in jobs) / held, 3),
        max(replicas),
        sum(job.handed_back for job in jobs),
        replicas,
        backlog,
        waits.tolist(),
    )


def _context(
    fleet: Fleet,
    config: AutoscalingConfig,
    target: int,
    requests: float,
    state: dict[str, Any],
    now: int,
) -> AutoscalingContext:
    work = Work(
        len(fleet.waiting),
        sum(job.left for job in fleet.waiting),
        len(fleet.running),
        sum(job.left for job in fleet.running),
        costs_known=1,
        model_known=1,
        ranks=1,
        gpu_second_price=0,
    )
    told = {
        name: {"ingress": [TimeStampedValue(now, value)]} for name, value in work._asdict().items()
    }
    ready = [node for node in fleet.staying if node.ready_at <= now]
    return AutoscalingContext(
        deployment_id=PLACE,
        deployment_name=REPLICA,
        app_name="simulated",
        current_num_replicas=len(ready),
        target_num_replicas=target,
        running_replicas=[],
        total_num_requests=requests,
        total_queued_requests=0.0,
        aggregated_metrics={},
        raw_metrics=told,
        capacity_adjusted_min_replicas=MIN_REPLICAS,
        capacity_adjusted_max_replicas=MAX_REPLICAS,
        policy_state=state,
        last_scale_up_time=None,
        last_scale_down_time=None,
        current_time=float(now),
        config=config,
    )


def arrivals(rate: Callable[[float], float], hours: float, seed: int) -> list[tuple[float, float]]:
    """A Poisson process of `rate(t)` jobs a second, three in four of 40 s and one of 150 s."""
    dice, most, at = random.Random(seed), 0.5, 0.0
    trace = []
    while (at := at + dice.expovariate(most)) < hours * HOUR:
        if dice.random() < rate(at) / most:
            trace.append((at, 40.0 if dice.random() < 0.75 else 150.0))
    return trace


def traces() -> dict[str, list[tuple[float, float]]]:
    """The three shapes."""
    return {
        "bursts": arrivals(lambda t: 0.25 if t % HOUR < 240 else 0.01, 6, 0),
        "day curve": arrivals(
            lambda t: 0.06 * (1 - math.cos(2 * math.pi * t / (24 * HOUR))), 24, 1
        ),
        "one flood": sorted(
            [*arrivals(lambda t: 0.02, 4, 2), *[(HOUR + i / 5, 40.0) for i in range(250)]]
        ),
    }


def draw(runs: dict[str, dict[str, Run]], path: Path) -> None:
    """A column for each trace: waits, replicas and what they cost, one under the other."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(3, len(runs), figsize=(15, 10), squeeze=False)
    colours = dict(zip(next(iter(runs.values())), ("#0b7285", "#e8590c", "#868e96"), strict=True))
    for column, (trace, contenders) in zip(axes.T, runs.items(), strict=True):
        column[0].set_title(trace)
        for name, run in contenders.items():
            style = {"color": colours[name], "label": name}
            waits = sorted(run.wait_s)
            column[0].plot(waits, np.arange(1, len(waits) + 1) / len(waits), **style)
            minutes = [minute / 60 for minute in range(len(run.replicas))]
            column[1].step(minutes, run.replicas, where="post", **style)
            column[2].plot(minutes, np.cumsum(run.replicas) / 60, **style)
        column[0].axvline(TARGET_WAIT_S, color="black", lw=0.8, ls="--")
        column[0].set_xlabel("wait of a job, s; the line is the target")
        column[2].set_xlabel("hours")
    for row, label in zip(
        axes, ("share of jobs begun by then", "replicas", "replica-hours"), strict=True
    ):
        row[0].set_ylabel(label)
    axes[0][0].legend(fontsize=8, loc="lower right")
    figure.tight_layout()
    figure.savefig(path, dpi=90)


def main() -> None:
    """Runs all contenders on all traces."""
    runs = {
        name: {c.name: simulate(trace, c) for c in contenders()} for name, trace in traces().items()
    }
    curves = ("replicas", "backlog_s", "wait_s")
    figures = {
        trace: {
            name: {k: v for k, v in asdict(run).items() if k not in curves}
            for name, run in of.items()
        }
        for trace, of in runs.items()
    }
    settings = {
        "target_wait_s": TARGET_WAIT_S,
        "startup_s": STARTUP_S,
        "drain_s": DRAIN_S,
        **BOUNDS,
    }
    command = f"python {Path(sys.argv[0]).parent.name}/{Path(sys.argv[0]).name}"
    told = {"command": command, **settings, "traces": figures}
    (RESULTS / "scaling.json").write_text(json.dumps(told, indent=1) + "\n")
    draw(runs, RESULTS / "scaling.png")
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
