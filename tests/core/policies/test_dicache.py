import pytest
import torch

from warpcache_ray.core.policies.dicache import DiCache
from warpcache_ray.core.types import Action, Features, Grid, Operator


def moment(probe: float, residual: float = 0.0):
    """Input 0, so that the probe is its own residual."""
    ones = torch.ones(1, 4, 2)
    return Features(0 * ones, probe * ones, Grid(1, 2, 2)), residual * ones


def test_residuals_on_the_line_of_the_last_two(play):
    """Probe residuals 1, 2, then 2.2: γ = 1.2, so residuals 10, 20 give 10 + 1.2 · 10."""
    policy = DiCache(threshold=1.0, retention=0.0, cooldown=0, warmup=2)
    decision, outcome = play(policy, [moment(1, 10), moment(2, 20), moment(2.2)])[2]
    assert (decision.action, decision.operators) == (Action.WARP, (Operator.BLEND,))
    assert decision.drift == pytest.approx(0.1)
    assert float(outcome.mean()) == pytest.approx(22.0)


@pytest.mark.parametrize(("probe", "expected"), [(9.0, 25.0), (1.1, 20.0)])
def test_gain_is_clipped(probe, expected, play):
    """To 1.5 above, to 1 (the latest) below."""
    policy = DiCache(threshold=99.0, retention=0.0, cooldown=0, warmup=2)
    _, outcome = play(policy, [moment(1, 10), moment(2, 20), moment(probe)])[2]
    assert float(outcome.mean()) == pytest.approx(expected)


def test_one_recompute_is_reused(play):
    """There is no line through one point."""
    policy = DiCache(threshold=99.0, retention=0.0, cooldown=0)
    decision, outcome = play(policy, [moment(1, 10), moment(2)])[1]
    assert decision.action is Action.REUSE
    assert float(outcome.mean()) == 10.0


def test_the_first_fifth_is_kept(play):
    """`retention` of the run is computed."""
    policy = DiCache(threshold=99.0, retention=0.2, cooldown=0)
    decisions = [decision for decision, _ in play(policy, [moment(1, 1)] * 10, 10)]
    assert [d.skips for d in decisions] == [False, False] + [True] * 8
    assert decisions[1].reason == "retention"


def test_drift_gathers_up_to_the_threshold(play):
    """Each step changes the probe by a quarter of itself: two of them stay within 0.5, the third doesn't."""
    policy = DiCache(threshold=0.5, retention=0.0, cooldown=0, warmup=1)
    decisions = [decision for decision, _ in play(policy, [moment(1.25**i) for i in range(5)])]
    assert [d.skips for d in decisions] == [False, True, True, False, True]
    assert [d.drift for d in decisions[1:]] == pytest.approx([0.25, 0.5, 0.75, 0.25])


def test_equal_probes_tell_no_gain(play):
    """Where the last two probe residuals are the same the latest residual is reused, clip or not."""
    policy = DiCache(threshold=99.0, retention=0.0, cooldown=0, warmup=2, gains=(0.0, 1.5))
    _, outcome = play(policy, [moment(1, 10), moment(1, 20), moment(2)])[2]
    assert float(outcome.mean()) == 20.0
