"""Finds the policy of fewest calls that keeps a quality, in at most twelve generations."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from warpcache_ray.core.policies.auto import Auto
from warpcache_ray.core.schedule import HORIZON, Plan, plan
from warpcache_ray.core.types import Course
from warpcache_ray.errors import InvalidRequest
from warpcache_ray.policy_document import Target
from warpcache_ray.tuning.calibrate import calibrated, common_course
from warpcache_ray.tuning.outlook import (
    Metric,
    Outlook,
    decibels,
    fewest_calls,
    predicted,
    quality,
)
from warpcache_ray.tuning.rivals import Rival, cheapest, rivals
from warpcache_ray.tuning.runs import Reference, Request, Runs, Score

GENERATIONS = 12
"""A search costs no more, in uncached runs: one per request, one for the noise floor, the rest for candidates."""
LEAST_TRIALS = 2
MOST_REQUESTS = GENERATIONS - 1 - LEAST_TRIALS
ROUNDS = 3
"""Candidates that are run; each round aims better than the one before."""
ANSWERS = (1.0, 0.7, 1.4)
"""Sizes of the Jacobian to try for real: which schedule is best depends on it, and calibration can't see it."""
ROUNDING = 1e-9
DIGITS = 6


@dataclass(frozen=True, slots=True)
class Trial:
    """A real run of a candidate: of which request, with at most how many calls, predicted to have how many dB."""

    request: Request
    calls: int
    predicted: float
    score: Score

    def level(self, metric: Metric) -> float:
        """Its quality in dB beyond what was predicted."""
        found = self.score.psnr if metric == "psnr" else self.score.ssim
        return decibels(metric, found) - self.predicted


@dataclass(frozen=True, slots=True)
class Profile:
    """What a search has found, and from what. `share` is that of the requests that are to keep the target, `blocks` the
    changes of each block, step by step, for each branch."""

    policy: Auto
    target: Target
    share: float
    course: Course
    trials: tuple[Trial, ...]
    noise: Score
    generations: float
    requests: tuple[Request, ...]
    blocks: tuple[tuple[str, tuple[tuple[float, ...], ...]], ...] = ()

    @property
    def chart(self) -> Plan:
        """The closed form that candidates are ranked by."""
        assert self.policy.gram is not None
        return plan(self.policy.gram, self.course, self.policy.answer)

    @property
    def steps(self) -> int:
        """Of a run."""
        return len(self.course.sigmas) - 1

    @property
    def calls(self) -> int:
        """Of the policy."""
        assert self.policy.max_calls is not None
        return min(self.policy.max_calls, self.steps)

    @property
    def metric(self) -> Metric:
        """The quality that is looked at: the target's, PSNR where that is a number of calls."""
        return "psnr" if self.target.metric == "calls" else self.target.metric

    @property
    def level(self) -> float:
        """The policy's own `level`: what `share` of the requests reach of the PSNR of an expected error of 1."""
        return round(self.outlook("psnr").bound(0.0, self.share), 2)

    def predicted(self, calls: int) -> float:
        """The closed form's dB."""
        return predicted(error(self.chart, calls))

    def outlook(self, metric: Metric | None = None, trials: int | None = None) -> Outlook:
        """What the (first) trials say of all requests."""
        return _outlook(metric or self.metric, self.trials[:trials])

    def bound(self, metric: Metric, calls: int, share: float) -> float:
        """The quality that a share of the requests is expected to reach with so many calls."""
        return quality(metric, self.outlook(metric).bound(self.predicted(calls), share))

    def expected_share(self, calls: int) -> float | None:
        """The share of requests expected to keep the target with so many calls."""
        if self.target.metric == "calls":
            return None
        goal = decibels(self.metric, self.target.bound)
        return self.outlook().share(self.predicted(calls), goal)

    def others(self, calls: int) -> dict[str, Rival]:
        """Other policies that can be replayed in closed form: the setting of fewest calls of each that is expected to
        be as good as this one with `calls`."""
        assert self.policy.gram is not None
        return cheapest(rivals(self.policy.gram, self.course), self.predicted(calls))

    def benefit(self) -> list[tuple[float, int]]:
        """Generations spent so far and the calls that one would have chosen then, trial by trial."""
        spent = len(self.requests) + 1.0
        found = []
        for count, trial in enumerate(self.trials, 1):
            spent += trial.score.calls / self.steps
            chosen = self.calls
            if self.target.metric != "calls":
                outlook = self.outlook(trials=count)
                chosen = _fewest(self.chart, outlook, self.target, self.share) or self.steps
            found.append((spent, chosen))
        return found


def search(
    runs: Runs, requests: Sequence[Request], target: Target, share: float, progress: bool = True
) -> Profile:
    """Calibrates on the requests, ranks all budgets in closed form, and runs three of them on some of the requests.

    Every request runs once uncached, the first once more under a harmless disturbance. Then what each run shows of the
    closed form's error decides which budget runs next, and which is chosen: the fewest calls with which `share` of all
    requests are expected to keep the target, the spread over requests and its uncertainty from so few counted in.

    Raises:
        InvalidRequest: too few or too many requests, runs that can't be planned, or a target out of reach.
    """
    if not 2 <= len(requests) <= MOST_REQUESTS:
        raise InvalidRequest(
            f"count: {len(requests)} prompts are not allowed; a search within {GENERATIONS} generations takes 2 to "
            f"{MOST_REQUESTS}",
            "count",
        )
    with tqdm(total=float(GENERATIONS), desc="search", disable=not progress, bar_format=BAR) as bar:
        steering = _Search(runs, requests, target, share, bar)
        found = steering.run()
        # What is left of the twelve isn't needed.
        bar.total = bar.n
    assert found.generations <= GENERATIONS + ROUNDING
    return found


BAR = "{desc}: {percentage:3.0f}% {bar} {n:.1f} of {total:.1f} generations, {elapsed}<{remaining}"


@dataclass(slots=True)
class _Search:
    runs: Runs
    requests: Sequence[Request]
    target: Target
    share: float
    bar: Any

    def run(self) -> Profile:
        references: list[Reference] = []
        for request in self.requests:
            references.append(self.runs.reference(request))
            self._tell()
            # What can't be planned shows at the first run.
            course = common_course(references)
        noise = self.runs.noise(self.requests[0])
        self._tell()
        grams = [torch.from_numpy(reference.gram) for reference in references]
        base = calibrated(course, references[0], grams, self.runs.key.model)
        assert base.gram is not None
        if self.target.metric == "calls":
            policy, trials = self._best_answer(base, course)
        else:
            policy, trials = self._fewest_calls(base, plan(base.gram, course, base.answer))
        runs = self.runs
        return Profile(
            policy,
            self.target,
            self.share,
            course,
            tuple(trials),
            noise,
            runs.generations,
            tuple(self.requests),
            _blocks(references),
        )

    def _best_answer(self, base: Auto, course: Course) -> tuple[Auto, list[Trial]]:
        """The schedule of best quality for a number of calls: calibration can't see the model's Jacobian."""
        assert base.gram is not None
        steps, calls = len(course.sigmas) - 1, int(self.target.bound)
        candidates: dict[tuple[int, ...], tuple[Auto, Plan]] = {}
        for answer in ANSWERS:
            policy = replace(base, max_calls=calls, answer=answer)
            chart = plan(base.gram, course, answer)
            candidates.setdefault(chart.schedule(policy.budget(chart)), (policy, chart))
        room = int(self._room * steps / min(calls, steps))
        tried = list(candidates.values())[:room]
        found = []
        for policy, chart in tried:
            trials = self._trials(policy, chart, self.requests[: room // len(tried)])
            scores = [trial.score.psnr for trial in trials]
            found.append((statistics.mean(scores) + min(scores), policy, trials))
        _, policy, trials = max(found, key=lambda each: each[0])
        return policy, trials

    def _fewest_calls(self, base: Auto, chart: Plan) -> tuple[Auto, list[Trial]]:
        metric = self.target.metric
        assert metric != "calls"
        outlook, trials = Outlook(metric), list[Trial]()
        for left in range(ROUNDS, 0, -1):
            calls = _fewest(chart, outlook, self.target, self.share) or chart.steps - 1
            policy = replace(base, max_calls=calls)
            count = max(1, int(self._room / left * chart.steps / calls))
            if self._room * chart.steps < calls:
                break
            # Those that have run least first, none twice with the same calls.
            seen = [trial.request for trial in trials]
            done = {trial.request for trial in trials if trial.calls == calls}
            fresh = sorted((r for r in self.requests if r not in done), key=seen.count)
            trials += self._trials(policy, chart, fresh[:count])
            outlook = _outlook(metric, trials)
        chosen = _fewest(chart, outlook, self.target, self.share)
        if chosen is None:
            raise self._out_of_reach(chart, outlook)
        return replace(base, max_calls=chosen), trials

    def _trials(self, policy: Auto, chart: Plan, requests: Sequence[Request]) -> list[Trial]:
        assert policy.max_calls is not None
        calls = policy.budget(chart)
        trials = []
        for request in requests:
            score = self.runs.score(request, policy)
            trials.append(Trial(request, calls, predicted(error(chart, calls)), score))
            self._tell()
        return trials

    @property
    def _room(self) -> float:
        return GENERATIONS - self.runs.generations + ROUNDING

    def _tell(self) -> None:
        self.bar.update(self.runs.generations - self.bar.n)

    def _out_of_reach(self, chart: Plan, outlook: Outlook) -> InvalidRequest:
        metric = self.target.metric
        assert metric != "calls"
        can = {
            calls: quality(metric, outlook.bound(predicted(error(chart, calls)), self.share))
            for calls in (chart.steps - 1, chart.steps // 2)
        }
        within = " and ".join(f"{value:.4g} with {calls}" for calls, value in can.items())
        name = {"psnr": "target_psnr", "ssim": "quality"}[metric]
        return InvalidRequest(
            f"{name}: {self.target.bound:g} can't be expected of {self.share:.0%} of the requests with fewer than all "
            f"{chart.steps} calls; what can: {within}",
            name,
        )


def _blocks(
    references: Sequence[Reference],
) -> tuple[tuple[str, tuple[tuple[float, ...], ...]], ...]:
    means = np.mean([r.blocks for r in references], axis=0).round(DIGITS).tolist()
    branches = references[0].branches
    return tuple((b, tuple(map(tuple, own))) for b, own in zip(branches, means, strict=True))


def error(chart: Plan, calls: int) -> float:
    """Expected square error of the final latent with so many calls."""
    return chart.rest(None, 0, min(calls, chart.steps) - 1)


def _fewest(chart: Plan, outlook: Outlook, target: Target, share: float) -> int | None:
    assert target.metric != "calls"
    budgets = range(math.ceil(chart.steps / HORIZON), chart.steps)
    goal = decibels(target.metric, target.bound)
    return fewest_calls(outlook, lambda calls: error(chart, calls), budgets, goal, share)


def _outlook(metric: Metric, trials: Sequence[Trial]) -> Outlook:
    levels = tuple(trial.level(metric) for trial in trials)
    return Outlook(metric, levels, len({trial.request for trial in trials}))
