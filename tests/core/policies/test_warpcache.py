import pytest
import torch

from warpcache_ray.core.policies.warpcache import WarpCache
from warpcache_ray.core.types import Action, Features, Grid, Operator, Site, Step
from warpcache_ray.policy_spec import parse_policy

MIDDLE = Step(25, 50)
GRID = Grid(1, 2, 2)


@pytest.mark.parametrize(
    ("motion", "expected"),
    [(0.0, 0.12), (0.3, 0.049), (0.5, 0.0268), (0.6, 0.02), (1.0, 0.02)],
)
def test_thresholds_of_the_seed(motion, expected):
    """base · exp(-scale · motion) with a floor."""
    assert WarpCache().threshold(motion) == pytest.approx(expected, abs=5e-4)


def turned(angle: float, batch: int = 1) -> Features:
    """Tokens of two channels, turned by an angle: cosine drift 1 - cos(angle)."""
    token = torch.stack((torch.cos(torch.tensor(angle)), torch.sin(torch.tensor(angle))))
    x = token.expand(batch, GRID.tokens, 2).clone()
    return Features(x, x, GRID)


@pytest.mark.parametrize(
    ("drift", "action"),
    [(0.0, Action.REUSE), (0.05, Action.REUSE), (0.07, Action.WARP), (0.13, Action.RECOMPUTE)],
)
def test_three_decisions(drift, action, make_state, make_reading):
    """Below the warp threshold reuse, below the threshold warp, else recompute; still features, motion left out."""
    policy, before = WarpCache(motion_scale=0.0), turned(0.0)
    now = turned(float(torch.arccos(torch.tensor(1 - drift))))
    reading = make_reading(policy.measure(make_state(policy, (before, before.input)), now))
    decision = policy.decide(make_state(policy, (before, before.input)), MIDDLE, reading)
    assert decision.action is action
    assert decision.drift == pytest.approx(drift, abs=1e-5)
    assert decision.threshold == pytest.approx(0.12)
    assert decision.operators == ((Operator.SPATIAL,) if action is Action.WARP else ())


def test_motion_tightens(make_state, make_reading):
    """The same angle is too much when the input changes along with it: here motion is its relative L1 change."""
    before, now = turned(0.0), turned(0.4)
    for scale, skips in ((0.0, True), (3.0, False)):
        policy = WarpCache(motion_scale=scale)
        state = make_state(policy, (before, before.input))
        reading = make_reading(policy.measure(state, now))
        assert policy.decide(state, MIDDLE, reading).skips is skips


def test_salient_tokens_weigh_more(make_features, make_state, make_reading):
    """A turned token of great channel variance drifts more than one of little, and as much with power 0."""
    before = make_features(1)
    before.input[0, 0] *= 5
    before.input[0, 1] *= 0.2

    def drift(power, token):
        policy = WarpCache(saliency_power=power)
        state = make_state(policy, (before, before.input))
        moved = before.input.clone()
        moved[0, token] *= -1
        now = Features(moved, moved, before.grid)
        return policy.decide(state, MIDDLE, make_reading(policy.measure(state, now))).drift

    assert drift(1.0, 0) > 10 * drift(1.0, 1)
    assert drift(0.0, 0) == pytest.approx(drift(0.0, 1))


def test_l2_is_the_relative_change(make_state, make_reading):
    """Scaled by 1.1 all tokens point the same way: no cosine drift, an L2 drift of 0.1."""
    before = turned(0.3)
    now = Features(before.input * 1.1, before.input * 1.1, GRID)
    for metric, expected in (("cosine", 0.0), ("l2", 0.1)):
        policy = WarpCache(metric=metric)
        state = make_state(policy, (before, before.input))
        decision = policy.decide(state, MIDDLE, make_reading(policy.measure(state, now)))
        assert decision.drift == pytest.approx(expected, abs=1e-6)


def test_presets():
    """Balanced is the seed's; what stands beside a preset replaces its values; each block decides by itself."""
    fast, balanced, quality = (
        parse_policy({"name": "warpcache", "preset": p}) for p in WarpCache.presets
    )
    assert balanced == WarpCache()
    assert fast.base_threshold > balanced.base_threshold > quality.base_threshold
    own = parse_policy({"name": "warpcache", "preset": "quality", "warmup": 5})
    assert (own.warmup, own.base_threshold) == (5, quality.base_threshold)
    assert own.site is Site.LAYER
