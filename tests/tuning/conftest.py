"""Profiles without a model: the built-in calibration, and runs with invented qualities."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest

from warpcache_ray.core.gram import prior
from warpcache_ray.core.policies.auto import Auto
from warpcache_ray.core.schedule import plan
from warpcache_ray.core.types import Course
from warpcache_ray.policy_document import Target
from warpcache_ray.tuning.outlook import predicted
from warpcache_ray.tuning.runs import Request, Score
from warpcache_ray.tuning.search import Profile, Trial, error

LEVELS = (17.0, 21.0, 19.5, 18.5)
Invent = Callable[..., Profile]


@pytest.fixture
def invent() -> Invent:
    """Makes a profile of 50 steps with these calls chosen, its trials at `LEVELS` beyond the closed form."""
    sigmas = (*prior().sigmas, 0.0)
    weights = tuple(b - a for a, b in pairwise(sigmas))
    course = Course(sigmas, 4.0, weights)

    def make(calls: int = 12, target: Target | None = None) -> Profile:
        chart = plan(prior(), course)
        foretold = predicted(error(chart, calls))
        errors = tuple(1e-4 * (i + 1) for i in range(50))
        trials = [
            Trial(Request(f"prompt {i}", i), calls, foretold, Score(psnr, 0.98, calls, errors))
            for i, psnr in enumerate(foretold + level for level in LEVELS)
        ]
        policy = Auto(gram=prior(), max_calls=calls, model="tiny-0-1")
        noise = Score(90.0, 0.99999, 50.0)
        requests = tuple(trial.request for trial in trials)
        wanted = target or Target("psnr", 30.0)
        changes = tuple(tuple(0.01 * (i + j) for j in range(50)) for i in range(12))
        blocks = tuple((branch, changes) for branch in prior().branches)
        return Profile(policy, wanted, 0.95, course, tuple(trials), noise, 6.0, requests, blocks)

    return make
