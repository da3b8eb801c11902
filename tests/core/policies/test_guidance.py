from dataclasses import replace

import pytest
import torch

from warpcache_ray.core.policies.guidance import Guidance, low_frequencies
from warpcache_ray.core.policy import Reading
from warpcache_ray.core.types import Action, BranchState, Decision, Features, Grid, Outcome, Step

GRID = Grid(2, 10, 12)
SHAPE = (1, 3, *GRID)


def noise(seed):
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def moments(*outputs):
    x = noise(0)
    return [(Features(x, x, GRID), output) for output in outputs]


def test_the_second_branch_is_the_first_plus_their_gap(play):
    """Without weights û = c + (u - c)_last, in skipped steps; every third is computed."""
    policy = Guidance(every=3, alpha1=0.0, alpha2=0.0, retention=0.0, cooldown=0)
    cond, uncond = noise(1), [noise(seed) for seed in range(2, 9)]
    outcomes = play(policy, moments(*uncond), peer=cond)
    assert [i for i, (d, _) in enumerate(outcomes) if not d.skips] == [0, 3, 6]
    torch.testing.assert_close(outcomes[2][1], uncond[0])
    torch.testing.assert_close(outcomes[5][1], uncond[3])


def test_the_first_branch_is_always_computed(play):
    """Nothing tells of it."""
    decisions = [d for d, _ in play(Guidance(every=9, retention=0.0), moments(*[noise(1)] * 5))]
    assert not any(d.skips for d in decisions)


@pytest.mark.parametrize(("index", "low", "high"), [(4, 1.5, 1.0), (5, 1.0, 1.25)])
def test_weights_of_the_two_bands(index, low, high):
    """Low frequencies weigh more before `switch`, high ones from there on."""
    policy = Guidance(every=99, alpha1=0.5, alpha2=0.25, switch=0.5)
    cond, gap = noise(1), noise(2)
    peer = Outcome(Step(index, 10), Decision(Action.RECOMPUTE, "first branch"), cond)
    [(features, output)] = moments(noise(3))
    state = BranchState().after_recompute(policy.remember(Step(index - 1, 10), features, output), 1)
    state = replace(state, peer=peer, memo=gap)
    decision = policy.decide(state, Step(index, 10), Reading())
    given = policy.approximate(state, features, Reading(), decision)
    slow = low_frequencies(gap)
    torch.testing.assert_close(given, cond + low * slow + high * (gap - slow))


def test_bands():
    """A wave of two periods lies within a fifth of ten rows, one of three doesn't; the mean always does."""
    rows = torch.arange(GRID.rows)[:, None] * (2 * torch.pi / GRID.rows)
    slow, fast = (torch.cos(n * rows).expand(SHAPE) for n in (2, 3))
    torch.testing.assert_close(low_frequencies(slow + fast + 1), slow + 1, atol=1e-5, rtol=0)


def test_the_gap_is_kept_by_the_second_branch_only():
    """The first branch leaves the note as it was."""
    policy, cond, uncond = Guidance(), noise(1), noise(2)
    state = BranchState(memo="before")
    assert policy.note(state, Step(0), cond) == "before"
    peer = Outcome(Step(0), Decision(Action.RECOMPUTE, "warmup"), cond)
    assert torch.equal(policy.note(replace(state, peer=peer), Step(0), uncond), uncond - cond)
