import pytest
import torch

from warpcache_ray.core.policies.teacache import TeaCache
from warpcache_ray.core.types import Features, Grid


def moment(value: float):
    x = torch.full((1, 4, 2), value)
    return Features(x, x, Grid(1, 2, 2)), x


def test_changes_of_consecutive_steps_gather(play):
    """Against the step before, not the last recompute: 1 → 1.1 → 1.21 are 0.1 and 0.1, above 0.15 together."""
    policy = TeaCache(threshold=0.15, cooldown=0)
    moments = [moment(1.1**i) for i in range(5)]
    decisions = [decision for decision, _ in play(policy, moments)]
    assert [d.skips for d in decisions] == [False, True, False, True, False]
    assert [d.drift for d in decisions[1:]] == pytest.approx([0.1, 0.2, 0.1, 0.2], rel=1e-4)


def test_the_polynomial_rescales(play):
    """1 + 2x + 3x² + 4x³ + 5x⁴, the highest power's coefficient first, at x = 0.5."""
    policy = TeaCache(threshold=99.0, coefficients=(5.0, 4.0, 3.0, 2.0, 1.0), cooldown=0)
    decision, _ = play(policy, [moment(2.0), moment(3.0)])[1]
    assert decision.drift == pytest.approx(1 + 1 + 0.75 + 0.5 + 0.3125)


def test_five_coefficients():
    """No other number of them makes a fourth-degree polynomial."""
    with pytest.raises(ValueError, match=r"coefficients: \(1.0,\) is not allowed; it must be five"):
        TeaCache(coefficients=(1.0,))
