"""WorldCache's equations in closed form, each module switched off and on."""

import pytest
import torch

from warpcache_ray.core.policies.worldcache import WorldCache
from warpcache_ray.core.policy import Reading
from warpcache_ray.core.types import Action, BranchState, Features, Grid, Operator, Snapshot, Step

OFF = {"cfc": False, "swd": False, "osi": False, "ats": False, "warp": False}
GRID = Grid(1, 2, 4)
LATEST = BranchState(Snapshot(Step(4), torch.zeros(1, 8, 2)))

Sums = tuple[float, ...]


def _policy(**parameters: object) -> WorldCache:
    return WorldCache(**{**OFF, **parameters})


def _reading(change=0.4, weighted=0.0, magnitude=10.0, moved=0.0, size=1.0, high=0.0, low=0.0):
    return Reading(((change, weighted, magnitude, moved, size),), ((high, -low),))


def _decide(policy: WorldCache, reading: Reading, step: Step, state: BranchState = LATEST):
    return policy.decide(state, step, reading)


def test_all_modules_off_leave_a_plain_threshold():
    """drift = Σ|p - p₁| / Σ|p₁| against τ0, and plain reuse."""
    decision = _decide(_policy(), _reading(moved=9.0, high=1.0), Step(30, 50))
    assert (decision.drift, decision.threshold) == (pytest.approx(0.04), 0.08)
    assert (decision.action, decision.operators) == (Action.REUSE, ())


@pytest.mark.parametrize("gap", [1, 2, 4])
@pytest.mark.parametrize("velocity", [0.0, 0.1, 0.5])
def test_cfc_lowers_the_threshold_with_motion(gap, velocity):
    """τ0 / (1 + α v), v being the input's change scaled to a gap of two steps (eq. 2-3)."""
    decision = _decide(_policy(cfc=True), _reading(moved=velocity * 20, size=20), Step(4 + gap, 50))
    assert decision.threshold == pytest.approx(0.08 / (1 + 2.0 * velocity * 2 / gap))


@pytest.mark.parametrize(("step", "factor"), [(Step(5, 50), 1.4), (Step(25, 50), 3), (Step(25), 1)])
def test_ats_raises_the_threshold_with_progress(step, factor):
    """τ (1 + β t/T), also on top of CFC; without a total it does nothing (eq. 13)."""
    assert _decide(_policy(ats=True), _reading(), step).threshold == pytest.approx(0.08 * factor)
    both = _policy(ats=True, cfc=True, motion_scale=1.0)
    reading = _reading(moved=(step.index - 4) / 2, size=1.0)
    assert _decide(both, reading, step).threshold == pytest.approx(0.04 * factor)


@pytest.mark.parametrize(("salient", "factor"), [(True, 1.12), (False, 1.0)])
def test_swd_weighs_change_on_salient_tokens(salient, factor, make_reading):
    """The same change drifts by 1 + β_s where the channels vary most, by 1 where they vary least (eq. 4-5)."""
    probe = torch.ones(1, 8, 2)
    probe[0, :4] = torch.tensor([0.0, 2.0])
    changed = probe.clone()
    changed[0, 0 if salient else 7] += 0.1
    state = BranchState(Snapshot(Step(4), probe, torch.zeros_like(probe), probe))
    features = Features(torch.zeros_like(probe), changed, GRID)
    for swd, expected in ((False, 1.0), (True, factor)):
        policy = _policy(swd=swd)
        decision = _decide(
            policy, make_reading(policy.measure(state, features)), Step(5, 50), state
        )
        assert decision.drift == pytest.approx(expected * 0.2 / 16, rel=1e-5)


@pytest.mark.parametrize(("change", "action"), [(0.79, "reuse"), (0.8, "recompute")])
def test_threshold_is_exclusive(change, action):
    """Recomputes at the threshold and above."""
    assert _decide(_policy(threshold=0.08), _reading(change), Step(6, 50)).action == action


def test_the_sample_nearest_to_its_threshold_decides():
    """Of samples with different motion not the largest drift counts, but the largest share of its threshold."""
    calm, fast = _reading(0.7), _reading(0.5, moved=1.0)
    both = Reading(calm.sums + fast.sums, calm.extremes + fast.extremes)
    decision = _decide(_policy(cfc=True), both, Step(6, 50))
    assert decision.action is Action.RECOMPUTE
    assert decision.drift == pytest.approx(0.05)


@pytest.fixture
def on_a_line(make_features, make_state):
    """`on_a_line(policy, g)`: state of two recomputes, the features `g` times as far along, the residual there."""
    start, slope = make_features(1), make_features(2)

    def at(place: float) -> tuple[Features, torch.Tensor]:
        probe = start.input + start.probe_residual + place * slope.probe_residual
        return Features(start.input, probe, start.grid), start.input + place * slope.input

    def build(policy: WorldCache, place: float, second: float = 1.0):
        features, residual = at(place)
        return make_state(policy, at(0.0), at(second)), features, residual

    return build


def _approximation(policy, state, features, make_reading, index=6):
    reading = make_reading(policy.measure(state, features))
    decision = policy.decide(state, Step(index, 50), reading)
    return decision, policy.approximate(state, features, reading, decision)


@pytest.mark.parametrize(
    ("place", "reached"), [(2.0, 2.0), (1.5, 1.5), (0.3, 0.3), (5.0, 2.0), (-1.0, 0.0)]
)
def test_osi_follows_linear_growth(place, reached, on_a_line, make_reading):
    """Growth along a line is recovered exactly, within a gain of 0 to γ_max (eq. 8-10)."""
    policy = _policy(osi=True, threshold=1e9, max_gain=2.0)
    state, features, _ = on_a_line(policy, place)
    decision, residual = _approximation(policy, state, features, make_reading)
    assert (decision.action, decision.operators) == (Action.WARP, (Operator.BLEND,))
    torch.testing.assert_close(residual, on_a_line(policy, reached)[2], atol=1e-4, rtol=1e-4)


def test_osi_reuses_where_both_residuals_are_equal(on_a_line, make_reading):
    """Two equal recomputes give no direction: the latest residual as it is."""
    policy = _policy(osi=True, threshold=1e9)
    state, features, _ = on_a_line(policy, 2.0, second=0.0)
    _, residual = _approximation(policy, state, features, make_reading)
    torch.testing.assert_close(residual, state.latest.residual)


@pytest.mark.parametrize(("osi", "recomputes"), [(False, 2), (True, 1)])
def test_no_blend_without_osi_or_a_second_recompute(osi, recomputes, on_a_line, make_reading):
    """The latest residual is reused as it is."""
    policy = _policy(osi=osi, threshold=1e9)
    state, features, _ = on_a_line(policy, 2.0)
    state = BranchState(state.latest, state.previous if recomputes == 2 else None)
    decision, residual = _approximation(policy, state, features, make_reading)
    assert decision.action is Action.REUSE
    assert residual is state.latest.residual


def test_gains_are_per_sample(on_a_line, make_reading):
    """A batch of two, one growing on and one standing still, gets a gain each."""
    policy = _policy(osi=True, threshold=1e9)
    (state, far, residual), (_, near, standing) = (on_a_line(policy, g) for g in (2.0, 1.0))

    def doubled(kept: Snapshot) -> Snapshot:
        tensors = (torch.cat((t, t)) for t in (kept.residual, kept.input, kept.probe))
        return Snapshot(kept.step, *tensors)

    both = Features(
        *(torch.cat(p) for p in ((far.input, near.input), (far.probe, near.probe))), far.grid
    )
    pair = BranchState(doubled(state.latest), doubled(state.previous))
    _, made = _approximation(policy, pair, both, make_reading)
    torch.testing.assert_close(made, torch.cat((residual, standing)), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("osi", [False, True])
@pytest.mark.parametrize(("index", "spatial"), [(6, False), (7, True), (30, True)])
def test_warp_starts_at_its_step(index, spatial, osi, on_a_line, make_reading):
    """No spatial warp before `warp_from`; from there on it stands after the blend."""
    policy = _policy(warp=True, osi=osi, warp_from=7, threshold=1e9)
    state, features, _ = on_a_line(policy, 1.2)
    decision, _ = _approximation(policy, state, features, make_reading, index)
    expected = (Operator.BLEND,) * osi + (Operator.SPATIAL,) * spatial
    assert decision.operators == expected
    assert decision.action is (Action.WARP if expected else Action.REUSE)


def test_warp_moves_the_residual_with_the_input(make_reading):
    """Where the input has moved by one token, the residual of the recompute is moved along."""
    grid = Grid(1, 12, 16)
    y, x = torch.meshgrid(torch.arange(12.0), torch.arange(16.0), indexing="ij")

    def tokens(shift: float) -> torch.Tensor:
        wave = torch.sin(0.4 * (x - shift)) * torch.cos(0.35 * y)
        return wave.reshape(1, -1, 1).repeat(1, 1, 3)

    policy = _policy(warp=True, warp_from=0, threshold=1e9)
    state = BranchState(Snapshot(Step(4), 3 * tokens(0), tokens(0), tokens(0)))
    features = Features(tokens(1), tokens(1), grid)
    _, residual = _approximation(policy, state, features, make_reading)
    left = (residual - 3 * tokens(1)).abs().mean()
    assert left < 0.3 * (state.latest.residual - 3 * tokens(1)).abs().mean()


@pytest.mark.parametrize(
    "field",
    [
        "threshold",
        "max_gain",
        "flow_scale",
        "motion_scale",
        "saliency_scale",
        "phase_scale",
        "warp_from",
    ],
)
def test_parameters_are_checked(field):
    """Negative values are refused by name."""
    with pytest.raises(ValueError, match=f"^{field}: -1 is not allowed"):
        WorldCache(**{field: -1})
