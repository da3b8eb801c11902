"""What holds for every policy."""

import copy

import pytest
import torch

from warpcache_ray.core.policies import POLICIES
from warpcache_ray.core.policy import Reading
from warpcache_ray.core.types import BranchState, Features, Step

TOTAL = 12
STEP = Step(6, 50)
EAGER = {
    "never": {},
    "interval": {"every": 99},
    "first_block": {"threshold": 1e9},
    "worldcache": {"threshold": 1e9, "max_skips": None},
}
"""Parameters that skip wherever nothing forces."""

every_policy = pytest.mark.parametrize("name", POLICIES)
measuring = pytest.mark.parametrize("name", ["first_block", "worldcache"])


@pytest.fixture
def skipped(make_features, make_reading):
    """`skipped(policy)`: the steps of a run that it skips, the features changing at each."""

    def run(policy) -> list[int]:
        state, skips = BranchState(), []
        for index in range(TOTAL):
            step, features = Step(index, TOTAL), make_features(index)
            decision = policy.forced(state, step)
            if decision is None:
                reading = make_reading(policy.measure(state, features))
                decision = policy.decide(state, step, reading)
            if decision.skips:
                skips.append(index)
                state = state.after_skip()
            else:
                snapshot = policy.remember(step, features, features.input)
                state = state.after_recompute(snapshot, policy.window)
        return skips

    return run


def _eager(name: str, **parameters: object):
    return POLICIES[name](**{**EAGER[name], **parameters})


def _unless_never(name: str, steps: list[int]) -> list[int]:
    return [] if name == "never" else steps


@every_policy
@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({"warmup": 3, "cooldown": 2}, [3, 4, 5, 6, 7, 8, 9]),
        ({"warmup": 0, "cooldown": 0}, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]),
        ({"warmup": 1, "cooldown": 1, "steps": (4, 8)}, [4, 5, 6, 7]),
        ({"warmup": 1, "cooldown": 1, "max_skips": 2}, [1, 2, 4, 5, 7, 8, 10]),
    ],
    ids=["ends", "no ends", "steps", "max_skips"],
)
def test_an_eager_policy_skips_what_it_may(name, parameters, expected, skipped):
    """Warm-up, cooldown, `steps` and `max_skips` recompute, and nothing else does."""
    assert skipped(_eager(name, **parameters)) == _unless_never(name, expected)


@every_policy
def test_steady_features_are_skipped(name, make_features, make_state, make_reading):
    """Without any drift the latest residual is used again."""
    policy, before, now = _eager(name), make_features(1), make_features(2)
    if name in ("first_block", "worldcache"):
        policy = POLICIES[name]()
    state = make_state(policy, (before, before.input), (now, now.input))
    if name == "never":
        assert policy.forced(state, STEP).reason == "never"
        return
    reading = make_reading(policy.measure(state, now))
    decision = policy.decide(state, STEP, reading)
    assert decision.skips
    torch.testing.assert_close(policy.approximate(state, now, reading, decision), now.input)


@every_policy
def test_policies_are_pure(name, make_features, make_state, make_reading):
    """The same inputs give the same decision and residual, and are left as they were."""
    policy = _eager(name, **({"warp": True} if name == "worldcache" else {}))
    moments = [(f, f.input + 1) for f in (make_features(1), make_features(2))]
    state, features = make_state(policy, *moments), make_features(3)
    if state.latest is None:
        return
    kept = copy.deepcopy((state, features))
    outcomes = []
    for _ in range(2):
        reading = make_reading(policy.measure(state, features))
        decision = policy.decide(state, STEP, reading)
        outcomes.append((reading, decision, policy.approximate(state, features, reading, decision)))
    assert outcomes[0][:2] == outcomes[1][:2]
    assert torch.equal(outcomes[0][2], outcomes[1][2])
    tensors = [
        (state.latest.residual, state.latest.input, features.input, features.probe)
        for state, features in (kept, (state, features))
    ]
    for then, today in zip(*tensors, strict=True):
        assert then is today is None or torch.equal(then, today)


@measuring
@pytest.mark.parametrize("cuts", [(5, 27), (1, 1, 30), (16, 16)])
def test_shards_add_up_to_the_whole(name, cuts, make_features, make_state):
    """Sums over unevenly cut tokens add to the whole's, the largest extremes are the whole's."""
    policy = POLICIES[name]()
    moments = [make_features(seed, batch=2) for seed in (1, 2, 3)]

    def measured(parts):
        before, latest, now = parts
        state = make_state(policy, (before, before.input), (latest, latest.input))
        return policy.measure(state, now)

    cut = [
        (features.input.split(cuts, 1), features.probe.split(cuts, 1), features.grid)
        for features in moments
    ]
    shards = [measured([Features(i[k], p[k], g) for i, p, g in cut]) for k in range(len(cuts))]
    whole = measured(moments)
    for sums, expected in zip(zip(*(s.sums for s in shards), strict=True), whole.sums, strict=True):
        torch.testing.assert_close(torch.stack(sums).sum(0), expected)
    columns = zip(*(s.extremes for s in shards), strict=True)
    for extremes, expected in zip(columns, whole.extremes, strict=True):
        assert torch.equal(torch.stack(extremes).amax(0), expected)


@measuring
@pytest.mark.parametrize("drifting", [0, 1])
def test_a_batch_recomputes_if_one_sample_must(
    name, drifting, make_features, make_state, make_reading
):
    """One sample that drifted is enough, wherever it stands in the batch."""
    policy, before, change = POLICIES[name](), make_features(1, batch=2), make_features(2)
    state = make_state(policy, (before, before.input))
    probe = before.probe.clone()
    probe[drifting] += change.probe[0]
    now = Features(before.input, probe, before.grid)
    reading = make_reading(policy.measure(state, now))
    alone = [Reading((s,), (e,)) for s, e in zip(reading.sums, reading.extremes, strict=True)]
    assert not policy.decide(state, STEP, reading).skips
    assert [policy.decide(state, STEP, r).skips for r in alone] == [drifting != 0, drifting != 1]


@measuring
@pytest.mark.parametrize("broken", [0, 1])
def test_what_is_not_a_number_recomputes(name, broken, make_features, make_state, make_reading):
    """A drift that can't be told is no reason to skip."""
    policy, before = POLICIES[name](), make_features(1, batch=2)
    probe = before.probe.clone()
    probe[broken] = torch.nan
    now = Features(before.input, probe, before.grid)
    state = make_state(policy, (before, before.input))
    reading = make_reading(policy.measure(state, now))
    assert not policy.decide(state, STEP, reading).skips
