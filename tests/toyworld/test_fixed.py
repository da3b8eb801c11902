"""Brute force over schedules: which are tried, and that they are run as they are given."""

from __future__ import annotations

from itertools import pairwise

from warpcache_ray.core.gram import prior
from warpcache_ray.core.schedule import HORIZON, plan
from warpcache_ray.core.types import Course
from warpcache_ray.toyworld.fixed import ANSWERS, Fixed, schedules

SIGMAS = (*prior().sigmas, 0.0)
COURSE = Course(SIGMAS, 4.0, tuple(b - a for a, b in pairwise(SIGMAS)))


def test_many_schedules_are_tried() -> None:
    """The closed form's own first; all of so many calls, rising, with no gap too long, and none twice."""
    charts = [plan(prior(), COURSE, answer) for answer in ANSWERS]
    found = schedules(charts, 12)
    assert found[0] == charts[0].schedule(12)
    assert len(found) == len(set(found)) > 100
    for steps in found:
        assert (steps[0], len(steps)) == (0, 12)
        assert all(0 < b - a <= HORIZON for a, b in pairwise((*steps, 50)))
    assert sum(steps[:7] == tuple(range(7)) for steps in found) >= 3


def test_a_schedule_is_a_policy() -> None:
    """Its steps are told to the runs apart: another schedule, another description."""
    one, other = (Fixed(gram=prior(), schedule=steps) for steps in ((0, 5, 9), (0, 5, 10)))
    assert one != other
    assert one.name == "auto"
