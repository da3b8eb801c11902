import math

import pytest

from warpcache_ray.bench.fronts import Point, cost_at, front, nearest


def test_front_drops_what_is_beaten():
    """A point stays only if nothing cheaper is as good."""
    points = [Point(20, 40), Point(10, 30), Point(15, 29), Point(25, 40), Point(10, 28)]
    assert front(points) == [(10, 30), (20, 40)]
    assert front([]) == []


def test_cost_is_log_linear_between_points():
    """Half-way in PSNR is the geometric mean of the costs."""
    along = [Point(10, 30), Point(40, 40)]
    assert cost_at(along, 35) == pytest.approx(20)
    assert cost_at(along, 32.5) == pytest.approx(10 * 4**0.25)


@pytest.mark.parametrize("target", [30, 40])
def test_a_measured_point_is_its_own_cost(target):
    """No rounding at the ends."""
    assert cost_at([Point(10, 30), Point(40, 40)], target) == {30: 10, 40: 40}[target]


@pytest.mark.parametrize("target", [29.9, 40.1, math.inf])
def test_nothing_is_extrapolated(target):
    """Outside the measured points there is no answer."""
    assert cost_at([Point(10, 30), Point(40, 40)], target) is None
    assert cost_at([], target) is None


def test_nearest_in_quality():
    """The point closest to a target, by name."""
    named = [("a", Point(10, 30)), ("b", Point(20, 36))]
    assert (nearest(named, 34), nearest(named, 31), nearest([], 30)) == ("b", "a", None)
