import pytest

from warpcache_ray.core.policies.interval import Interval
from warpcache_ray.core.policy import Reading
from warpcache_ray.core.types import BranchState, Step


@pytest.mark.parametrize(("every", "pattern"), [(1, "RRRRRRR"), (2, "RSRSRSR"), (3, "RSSRSSR")])
def test_schedule(every, pattern, make_features):
    """One recompute (R) in every n steps, skips (S) between."""
    policy, state, made = Interval(every=every, cooldown=0), BranchState(), ""
    features = make_features(0)
    for index in range(len(pattern)):
        step = Step(index, len(pattern))
        decision = policy.forced(state, step) or policy.decide(state, step, Reading())
        made += "S" if decision.skips else "R"
        kept = policy.remember(step, features, features.input)
        state = state.after_skip() if decision.skips else state.after_recompute(kept, 1)
    assert made == pattern
