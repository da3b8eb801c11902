import torch

from warpcache_ray.core.policies.lemica import LeMiCa


def computed(play, make_features, policy, total):
    moments = [(make_features(i), make_features(i).probe) for i in range(total)]
    outcomes = play(policy, moments)
    return [i for i, (decision, _) in enumerate(outcomes) if not decision.skips], outcomes, moments


def test_the_schedule_is_kept(play, make_features):
    """Its steps are computed, each other one gives what the latest of them gave."""
    policy = LeMiCa(schedule=(0, 3, 4, 9))
    steps, outcomes, moments = computed(play, make_features, policy, 10)
    assert steps == [0, 3, 4, 9]
    assert torch.equal(outcomes[2][1], moments[0][1])
    assert torch.equal(outcomes[8][1], moments[4][1])


def test_another_length_takes_the_nearest_steps(play, make_features):
    """A schedule of 10 steps in a run of 19: twice each index."""
    policy = LeMiCa(schedule=(0, 3, 4, 9), schedule_steps=10)
    assert computed(play, make_features, policy, 19)[0] == [0, 6, 8, 18]


def test_no_schedule_leaves_nothing_out(play, make_features):
    """There is no default that would fit a model."""
    assert computed(play, make_features, LeMiCa(), 5)[0] == [0, 1, 2, 3, 4]
