import pytest
import torch

from warpcache_ray.core.policies.easycache import EasyCache
from warpcache_ray.core.policy import Reading
from warpcache_ray.core.types import Action, BranchState, Decision, Features, Grid, Outcome, Step

GRID = Grid(1, 2, 2)
STEP = Step(6, 50)


def latent(value: float) -> Features:
    x = torch.full((1, 4, 1, 2, 2), value)
    return Features(x, x, GRID)


def linear(values, slope=2.0):
    """Moments of a denoiser v = slope · x at these latents."""
    return [(latent(value), torch.full((1, 4, 1, 2, 2), slope * value)) for value in values]


def test_a_linear_denoiser(play):
    """v = 2x has k = 2: from x = 8, v = 16, a step of 0.4 foretells 2 · 0.4 / 16 = 0.05, two of them twice that."""
    moments = linear([10.0, 8.0, 7.6, 7.2, 6.8, 6.4])
    outcomes = play(EasyCache(threshold=0.12, warmup=2, cooldown=0), moments)
    decisions = [decision for decision, _ in outcomes]
    assert [d.skips for d in decisions] == [False, False, True, True, False, True]
    assert [d.drift for d in decisions[2:5]] == pytest.approx([0.05, 0.1, 0.15])
    assert decisions[5].drift == pytest.approx(2 * 0.4 / 13.6)


@pytest.mark.parametrize(("space", "expected"), [("residual", 7.6 + 8.0), ("velocity", 16.0)])
def test_what_is_reused(space, expected, play):
    """out - x as published, or the velocity itself."""
    policy = EasyCache(threshold=1.0, warmup=2, cooldown=0, space=space)
    decision, outcome = play(policy, linear([10.0, 8.0, 7.6]))[2]
    assert decision.action is Action.REUSE
    assert float(outcome.mean()) == pytest.approx(expected)


def test_two_recomputes_come_first(play):
    """With a single one there is no rate of change."""
    decisions = [d for d, _ in play(EasyCache(warmup=0), linear([1.0, 0.999, 0.998, 0.997]))]
    assert [d.reason for d in decisions] == ["no state", "no rate", "drift", "cooldown"]


@pytest.mark.parametrize("action", [Action.REUSE, Action.RECOMPUTE])
def test_the_second_branch_follows_the_first(action, make_state):
    """Whatever its own latents say."""
    policy, moments = EasyCache(), linear([10.0, 8.0])
    peer = Outcome(STEP, Decision(action, "drift"), moments[0][1])
    kept = make_state(policy, *moments)
    state = BranchState(kept.latest, kept.previous, trail=kept.trail, peer=peer)
    assert policy.measure(state, latent(1.0)) is None
    decision = policy.decide(state, STEP, Reading())
    assert (decision.action, decision.reason) == (action, "peer")
