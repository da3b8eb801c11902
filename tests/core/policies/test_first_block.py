import pytest
import torch

from warpcache_ray.core.policies.first_block import FirstBlock
from warpcache_ray.core.policy import Reading
from warpcache_ray.core.types import Action, Features, Step


def test_drift_is_the_relative_change_of_the_probe_residual(
    make_features, make_state, make_reading
):
    """A probe residual grown by 5 % drifts by 0.05, however the input itself changes."""
    policy, before, other = FirstBlock(), make_features(1), make_features(2)
    now = Features(other.input, other.input + 1.05 * before.probe_residual, before.grid)
    state = make_state(policy, (before, before.input))
    decision = policy.decide(state, Step(6, 50), make_reading(policy.measure(state, now)))
    assert decision.action is Action.REUSE
    assert decision.drift == pytest.approx(0.05, rel=1e-3)
    assert decision.threshold == 0.08


@pytest.mark.parametrize(
    ("difference", "action"), [(0.7, "reuse"), (0.8, "recompute"), (0.9, "recompute")]
)
def test_threshold_is_exclusive(difference, action, make_features, make_state):
    """Skips below the threshold, recomputes at it and above."""
    features = make_features(1)
    state = make_state(FirstBlock(), (features, features.input))
    reading = Reading(((difference, 10.0),), ((),))
    assert FirstBlock(threshold=0.08).decide(state, Step(6), reading).action == action


def test_snapshot_keeps_the_probe_residual_only(make_features):
    """No more than residual and probe residual is held."""
    features = make_features(1)
    snapshot = FirstBlock().remember(Step(1), features, features.input)
    assert (snapshot.input, snapshot.probe) == (None, None)
    assert torch.equal(snapshot.probe_residual, features.probe_residual)


@pytest.mark.parametrize(("field", "value"), [("threshold", 0.0), ("probe_depth", 0)])
def test_parameters_are_checked(field, value):
    """Without a threshold or a probe there is no such policy."""
    with pytest.raises(ValueError, match=f"^{field}: "):
        FirstBlock(**{field: value})
