import pytest
import torch

from warpcache_ray.core.policies.taylorseer import TaylorSeer
from warpcache_ray.core.types import Action, Operator, Site


@pytest.fixture
def path(make_features):
    """`path(degree)`: moments whose residual is a polynomial of that degree in the step index."""

    def make(degree: int, steps: int = 14):
        parts = [make_features(seed).input for seed in range(degree + 1)]
        residuals = [sum(p * (i / 3) ** k for k, p in enumerate(parts)) for i in range(steps)]
        return [(make_features(i), residual) for i, residual in enumerate(residuals)]

    return make


@pytest.mark.parametrize(("order", "degree"), [(0, 0), (1, 0), (1, 1), (2, 0), (2, 1)])
def test_exact_up_to_its_order(order, degree, path, play):
    """A constant is followed by all orders, a line in the index from the first order on. (Not a parabola by the second:
    the published slope is the one behind the latest recompute.)"""
    moments = path(degree)
    outcomes = play(TaylorSeer(order=order, interval=3), moments)
    assert sum(decision.skips for decision, _ in outcomes) > 5
    for (_, outcome), (_, true) in zip(outcomes, moments, strict=True):
        torch.testing.assert_close(outcome, true, atol=1e-4, rtol=1e-4)


def test_second_order_by_hand(make_features, play):
    """0, 1, 4, 9 at steps 0 to 3: slope 5 and curvature 2 give 9 + 5k + k², as in the paper's finite differences."""
    ones = torch.ones_like(make_features(0).input)
    moments = [(make_features(i), ones * float(i * i)) for i in range(8)]
    outcomes = play(TaylorSeer(order=2, interval=4, warmup=4), moments)
    values = [float(outcome.mean()) for _, outcome in outcomes]
    assert values[4:7] == [15.0, 23.0, 33.0]


@pytest.mark.parametrize("order", [0, 1, 2])
def test_window_follows_the_order(order, path, play):
    """One snapshot more than the order is kept; order 0 is reuse, the others are forecasts."""
    policy = TaylorSeer(order=order, interval=3)
    assert policy.window == order + 1
    skips = [decision for decision, _ in play(policy, path(1)) if decision.skips]
    assert {d.action for d in skips} == {Action.WARP if order else Action.REUSE}
    assert {d.operators for d in skips} == {(Operator.FORECAST,) if order else ()}


def test_every_interval_is_computed(path, play):
    """After the warm-up each `interval`-th step, counted from the last of it."""
    decisions = [decision for decision, _ in play(TaylorSeer(interval=4, warmup=3), path(1))]
    assert [i for i, d in enumerate(decisions) if not d.skips] == [0, 1, 2, 6, 10, 13]


def test_site_is_a_parameter():
    """Any of the three; a denoiser's output unless told otherwise."""
    assert TaylorSeer().site is Site.OUTPUT
    assert [TaylorSeer(site=site).site for site in Site] == list(Site)
