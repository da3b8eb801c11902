"""What holds for every policy."""

import copy
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from warpcache_ray.core.policies import POLICIES
from warpcache_ray.core.policy import Reading
from warpcache_ray.core.types import Action, BranchState, Decision, Features, Outcome, Step

TOTAL = 12
STEP = Step(6, 50)
EAGER = {
    "never": {},
    "interval": {"every": 99},
    "first_block": {"threshold": 1e9},
    "worldcache": {"threshold": 1e9, "max_skips": None},
    "warpcache": {"base_threshold": 1e9, "warp_threshold": 5e8},
    "dicache": {"threshold": 1e9, "retention": 0.0},
    "teacache": {"threshold": 1e9},
    "easycache": {"threshold": 1e9},
    "magcache": {"threshold": 1e9, "retention": 0.0, "max_skips": None},
    "taylorseer": {"interval": 99},
    "lemica": {"schedule": (0,)},
    "guidance": {"every": 99, "retention": 0.0},
    "auto": {"max_calls": 1},
}
"""Parameters that skip wherever nothing forces."""
RECOMPUTES_NEEDED = {"easycache": 2}
SHARDED = {"first_block": {}, "worldcache": {}, "warpcache": {}, "dicache": {}, "teacache": {}}
"""Those that measure features of which a rank may hold a share."""
MEASURING = {**SHARDED, "dicache": {"retention": 0.0}, "easycache": {}}

every_policy = pytest.mark.parametrize("name", EAGER)
sharded = pytest.mark.parametrize("name", SHARDED)
measuring = pytest.mark.parametrize("name", MEASURING)


@pytest.fixture
def skipped(make_features, play):
    """`skipped(policy)`: the steps of a run that it skips, the features changing at each."""

    def run(policy) -> list[int]:
        moments = [(f, f.input) for f in map(make_features, range(TOTAL))]
        peer = moments[0][1] if policy.name == "guidance" else None
        outcomes = play(policy, moments, peer=peer)
        return [index for index, (decision, _) in enumerate(outcomes) if decision.skips]

    return run


@pytest.fixture
def informed(make_features, make_state):
    """`informed(policy, moments...)`: the state after recomputes, with a peer and a memo if it asks for them."""

    def make(policy, *moments) -> BranchState:
        state = make_state(policy, *moments)
        if policy.name != "guidance":
            return state
        other = make_features(9).input
        peer = Outcome(STEP, Decision(Action.RECOMPUTE, "test"), other)
        return replace(state, peer=peer, memo=moments[-1][1] - other)

    return make


def _eager(name: str, **parameters: object):
    return POLICIES[name](**{**EAGER[name], **parameters})


def _measuring(name: str):
    return POLICIES[name](**MEASURING[name])


def _twice(policy, make_state, make_features, latest: Features) -> BranchState:
    """After a recompute on random features and one on `latest`."""
    earlier = make_features(7, batch=2)
    return make_state(policy, (earlier, earlier.input), (latest, latest.input))


def _but(name: str, steps: list[int]) -> list[int]:
    return [s for s in steps if name != "never" and s >= RECOMPUTES_NEEDED.get(name, 0)]


def test_every_policy_is_tried_here():
    """The table above misses none."""
    assert set(EAGER) == set(POLICIES)


@every_policy
@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({"warmup": 3, "cooldown": 2}, [3, 4, 5, 6, 7, 8, 9]),
        ({"warmup": 0, "cooldown": 0}, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]),
        ({"warmup": 1, "cooldown": 1, "steps": (4, 8)}, [4, 5, 6, 7]),
        ({"warmup": 2, "cooldown": 1, "max_skips": 2}, [2, 3, 5, 6, 8, 9]),
    ],
    ids=["ends", "no ends", "steps", "max_skips"],
)
def test_an_eager_policy_skips_what_it_may(name, parameters, expected, skipped):
    """Warm-up, cooldown, `steps` and `max_skips` recompute, and nothing else does."""
    assert skipped(_eager(name, **parameters)) == _but(name, expected)


@every_policy
def test_steady_features_are_skipped(name, make_features, informed, make_reading):
    """Without any drift the latest residual is used again."""
    policy = _measuring(name) if name in MEASURING else _eager(name)
    if name == "taylorseer":
        policy = _eager(name, order=0)
    before, now = make_features(1), make_features(2)
    state = informed(policy, (before, before.input), (now, now.input))
    if name == "never":
        assert policy.forced(state, STEP).reason == "never"
        return
    reading = make_reading(policy.measure(state, now))
    decision = policy.decide(state, STEP, reading)
    assert decision.skips
    torch.testing.assert_close(policy.approximate(state, now, reading, decision), now.input)


@every_policy
def test_policies_are_pure(name, make_features, informed, make_reading):
    """The same inputs give the same decision and residual, and are left as they were."""
    policy = _eager(name, **({"warp": True} if name == "worldcache" else {}))
    moments = [(f, f.input + 1) for f in (make_features(1), make_features(2))]
    state, features = informed(policy, *moments), make_features(3)
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
        (
            *[t for s in state.snapshots for t in s.tensors],
            state.memo,
            features.input,
            features.probe,
        )
        for state, features in (kept, (state, features))
    ]
    for then, today in zip(*tensors, strict=True):
        assert then is today is None or torch.equal(then, today)


@sharded
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
    policy, before, change = _measuring(name), make_features(1, batch=2), make_features(2)
    state = _twice(policy, make_state, make_features, before)
    now = Features(before.input.clone(), before.probe.clone(), before.grid)
    now.input[drifting] += change.input[0]
    now.probe[drifting] += change.probe[0]
    reading = make_reading(policy.measure(state, now))
    alone = [Reading((s,), (e,)) for s, e in zip(reading.sums, reading.extremes, strict=True)]
    assert not policy.decide(state, STEP, reading).skips
    assert [policy.decide(state, STEP, r).skips for r in alone] == [drifting != 0, drifting != 1]


@measuring
@pytest.mark.parametrize("broken", [0, 1])
def test_what_is_not_a_number_recomputes(name, broken, make_features, make_state, make_reading):
    """A drift that can't be told is no reason to skip."""
    policy, before = _measuring(name), make_features(1, batch=2)
    now = Features(before.input.clone(), before.probe.clone(), before.grid)
    now.input[broken] = now.probe[broken] = torch.nan
    state = _twice(policy, make_state, make_features, before)
    reading = make_reading(policy.measure(state, now))
    assert not policy.decide(state, STEP, reading).skips


@pytest.mark.parametrize("name", ["dicache", "teacache", "easycache"])
def test_drift_gathers_over_skips(name, make_features, play):
    """Changes too small to recompute for add up until one does; the recompute starts from nothing."""
    start, towards = make_features(1), make_features(2)
    moments = []
    for index in range(12):
        part = 0.02 * index
        hidden, probe = (
            a.lerp(b, part) for a, b in ((start.input, towards.input), (start.probe, towards.probe))
        )
        moments.append((Features(hidden, probe, start.grid), hidden))
    policy = POLICIES[name](**{**MEASURING[name], "threshold": 0.08, "warmup": 2})
    decisions = [decision for decision, _ in play(policy, moments)]
    drifts = [d.drift for d in decisions if d.drift is not None]
    assert [d.skips for d in decisions].count(True) >= 4
    assert sum(d.reason == "drift" and not d.skips for d in decisions) >= 1
    for before, after in pairwise(decisions[2:]):
        if before.skips and after.drift is not None:
            assert after.drift > before.drift
        elif after.drift is not None:
            assert after.drift < max(drifts) / 2
