import pytest
import torch

from warpcache_ray.core.policy import Policy, require
from warpcache_ray.core.types import Action, BranchState, Features, Grid, Snapshot, Step

STATE = BranchState(Snapshot(Step(2), torch.zeros(1, 1, 1)), skips=2)


def test_require_names_field_value_and_what_is_allowed():
    """A refusal tells all three; a fine value passes."""
    require(True, "every", 0, "1 or more")
    with pytest.raises(ValueError, match="every: 0 is not allowed; it must be 1 or more"):
        require(False, "every", 0, "1 or more")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("warmup", -1),
        ("cooldown", -1),
        ("probe_depth", -1),
        ("max_skips", 0),
        ("blocks", (2, 2)),
        ("steps", (-1, None)),
        ("steps", (5, 3)),
    ],
)
def test_shared_parameters_are_checked(field, value):
    """Each bad value is refused by name."""
    with pytest.raises(ValueError, match=f"^{field}: "):
        Policy(**{field: value})


@pytest.mark.parametrize(
    ("policy", "state", "step", "reason"),
    [
        (Policy(), BranchState(), Step(5, 20), "no state"),
        (Policy(warmup=6), STATE, Step(5, 20), "warmup"),
        (Policy(cooldown=2), STATE, Step(18, 20), "cooldown"),
        (Policy(steps=(6, None)), STATE, Step(5, 20), "outside steps"),
        (Policy(steps=(0, 5)), STATE, Step(5, 20), "outside steps"),
        (Policy(max_skips=2), STATE, Step(5, 20), "max_skips"),
        (Policy(max_skips=3, steps=(5, 6), cooldown=14, warmup=5), STATE, Step(5, 20), None),
        (Policy(cooldown=99), STATE, Step(5), None),
    ],
)
def test_forced_recomputes(policy, state, step, reason):
    """Every rule forces at its edge and not beyond it; without a total there is no cooldown."""
    decision = policy.forced(state, step)
    assert (decision and decision.reason) == reason
    assert decision is None or decision.action is Action.RECOMPUTE


def test_by_default_the_residual_is_kept_and_reused():
    """The base measures nothing, remembers the residual and gives it back."""
    policy, residual = Policy(), torch.ones(1, 2, 2)
    features = Features(residual, residual, Grid(1, 1, 2))
    state = BranchState(policy.remember(Step(1), features, residual))
    assert policy.measure(state, features) is None
    assert policy.approximate(state, features, None, None) is residual
