"""The plan against what it stands for, computed the long way on runs of a few steps."""

from itertools import combinations, pairwise

import pytest
import torch

from warpcache_ray.core.gram import FORWARD, GUIDED, Gram, outputs_gram
from warpcache_ray.core.schedule import HORIZON, RIDGE, plan
from warpcache_ray.core.types import Course

STEPS = 8
GUIDANCE = 3.0


def _sigmas(steps: int) -> tuple[float, ...]:
    return tuple(float(x) for x in torch.linspace(1, 0, steps + 1, dtype=torch.float64))


def _course(guidance: float | None, steps: int = STEPS) -> Course:
    # Weights of their own, as a multistep solver has.
    weights = torch.rand(steps, generator=torch.Generator().manual_seed(5)).double() + 0.5
    return Course(_sigmas(steps), guidance, tuple((-weights / weights.sum()).tolist()))


def _gram(branches, steps: int = STEPS) -> Gram:
    """Of outputs that bend: a random walk whose steps change slowly."""
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(len(branches), steps, 30, generator=generator, dtype=torch.float64)
    outputs = (0.3 * noise.cumsum(1)).cumsum(1) / steps + 1
    return Gram.of(_sigmas(steps)[:-1], outputs_gram(outputs.flatten(0, 1)), branches)


CASES = [(FORWARD, None), (GUIDED, GUIDANCE), (GUIDED, None)]
each_case = pytest.mark.parametrize(("branches", "guidance"), CASES, ids=str)


def _gaps(steps: int) -> list[tuple[int | None, int, int]]:
    ends = [(s, e) for s in range(steps) for e in range(s + 1, steps + 1)]
    return [(p, s, e) for s, e in ends for p in (None, *range(s))]


def _cost(chart, schedule: tuple[int, ...]) -> float:
    nodes = (None, *schedule, chart.steps)
    return sum(chart.error(*nodes[i : i + 3]) for i in range(len(schedule)))


class Naive:
    """V_i and D_i as vectors over all outputs, and squares of any sum of them by the Gram matrix."""

    def __init__(self, gram: Gram, guidance: float | None) -> None:
        size, n = len(gram.matrix()), len(gram.sigmas)
        unit = torch.eye(size, dtype=torch.float64)
        self.matrix = gram.matrix()
        self.v, self.d = unit[:n], torch.zeros(n, size, dtype=torch.float64)
        if gram.branches == GUIDED and guidance is not None:
            self.v = guidance * unit[:n] + (1 - guidance) * unit[n:]
            self.d = unit[:n] - unit[n:]

    def square(self, x: torch.Tensor) -> float:
        return float(x @ self.matrix @ x)

    def missed(self, chart, s: int, e: int) -> torch.Tensor:
        """What the gap adds, less H V_s."""
        terms = [w * (self.v[i] - self.v[s]) for i, w in enumerate(chart.weights) if s <= i < e]
        return torch.stack(terms).sum(0)

    def told(self, chart, p: int | None, s: int, e: int) -> torch.Tensor:
        level, before, difference = chart.forecast(p, s, e)
        back = self.v[s if p is None else p] - self.v[s]
        return level * self.v[s] + before * back + difference * self.d[s]

    def known(self, chart, p: int | None, s: int, e: int) -> torch.Tensor:
        after, before, difference, difference_after = chart.correction(p, s, e)
        back = self.v[s if p is None else p] - self.v[s]
        ahead = self.v[e] - self.v[s]
        lines = difference * self.d[s] + difference_after * self.d[e]
        return after * ahead + before * back + lines


@each_case
def test_errors_are_quadratic_forms_of_the_gram_matrix(branches, guidance):
    """A gap costs the square of what its correction (at the end of the run: its forecast) leaves, grown to the end."""
    gram = _gram(branches)
    course = _course(guidance)
    chart, naive = plan(gram, course, 0.0), Naive(gram, guidance)
    for p, s, e in _gaps(STEPS):
        at = naive.told(chart, p, s, e) if e == STEPS else naive.known(chart, p, s, e)
        left = naive.square(naive.missed(chart, s, e) - at)
        growth = 1 / (1.01 - course.sigmas[e]) ** 2
        assert chart.error(p, s, e) == pytest.approx(growth * left, rel=1e-5, abs=1e-8)


@each_case
def test_fits_are_ridge_regressions(branches, guidance):
    """What is left overlaps with each feature by no more than the ridge makes it."""
    gram = _gram(branches)
    chart, naive = plan(gram, _course(guidance)), Naive(gram, guidance)
    for p, s, e in _gaps(STEPS):
        left = naive.missed(chart, s, e) - naive.told(chart, p, s, e)
        back = naive.v[s if p is None else p] - naive.v[s]
        for x, weight in zip((naive.v[s], back, naive.d[s]), chart.forecast(p, s, e), strict=True):
            overlap = float(x @ naive.matrix @ left)
            ridge = RIDGE * naive.square(x) * weight
            assert overlap == pytest.approx(ridge, rel=1e-4, abs=1e-8)


def test_the_jacobian_weighs_the_foretold_position():
    """Its share of the error grows as its square, and is nothing where the run ends or nothing is skipped."""
    gram, course = _gram(FORWARD), _course(None)
    none, once, twice = (plan(gram, course, answer) for answer in (0.0, 1.0, 2.0))
    shares = {}
    for gap in _gaps(STEPS):
        shares[gap] = once.error(*gap) - none.error(*gap)
        share = twice.error(*gap) - none.error(*gap)
        assert share == pytest.approx(4 * shares[gap], rel=1e-6, abs=1e-12)
    assert all(abs(shares[g]) < 1e-12 for g in shares if g[2] in (g[1] + 1, STEPS))
    assert all(shares[g] > 0 for g in shares if g[1] + 1 < g[2] < STEPS)


@each_case
@pytest.mark.parametrize("calls", range(1, STEPS + 1))
def test_the_programme_finds_the_best_of_all_subsets(branches, guidance, calls):
    """Among all schedules of at most so many calls none costs less, and the one told costs what it says."""
    chart = plan(_gram(branches), _course(guidance))
    subsets = [(0, *rest) for size in range(calls) for rest in combinations(range(1, STEPS), size)]
    least = min(_cost(chart, subset) for subset in subsets)
    assert chart.rest(None, 0, calls - 1) == pytest.approx(least, rel=1e-9, abs=1e-15)
    assert _cost(chart, chart.schedule(calls)) == pytest.approx(least, rel=1e-9, abs=1e-15)
    assert len(chart.schedule(calls)) <= calls


def test_more_calls_never_cost_more():
    """And all steps cost nothing."""
    chart = plan(_gram(GUIDED), _course(GUIDANCE))
    costs = [chart.rest(None, 0, calls) for calls in range(STEPS)]
    assert costs == sorted(costs, reverse=True)
    assert costs[0] > 100 * costs[-1]
    assert costs[-1] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("calls", [3, 7, 12])
def test_no_gap_is_longer_than_the_horizon(calls):
    """Also where there are hardly enough calls for it."""
    steps = 2 * HORIZON + 5
    schedule = plan(_gram(FORWARD, steps), _course(None, steps)).schedule(calls)
    assert len(schedule) == calls
    assert max(b - a for a, b in pairwise((*schedule, steps))) <= HORIZON


def test_other_steps_than_calibrated_are_planned_anew():
    """A grid twice as fine has a schedule of its own, at about the same noise levels."""
    gram = _gram(FORWARD)
    coarse, fine = (plan(gram, _course(None, steps)).schedule(3) for steps in (STEPS, 2 * STEPS))
    assert len(coarse) == len(fine) == 3
    assert max(abs(2 * a - b) for a, b in zip(coarse, fine, strict=True)) <= 3
