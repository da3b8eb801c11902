"""`auto` on denoisers whose runs have a closed form, driven by the engine's own code for site `output`."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from warpcache_ray.core.gram import FORWARD, GUIDED, Gram, outputs_gram
from warpcache_ray.core.policies.auto import REBUILD, Auto
from warpcache_ray.core.schedule import HORIZON, plan
from warpcache_ray.core.types import Action, BranchState, Course, Grid, Snapshot, Step, Where
from warpcache_ray.engine.call import Call
from warpcache_ray.engine.output import OutputForm, denoise
from warpcache_ray.engine.session import Session, SessionStore
from warpcache_ray.models.adapter import packed

SHAPE = (1, 2, 3, 4, 4)
GUIDANCE = 4.0
Path = Callable[[float, str], Tensor]
"""Output of a denoiser at a noise level on a branch, whatever the latent is."""


def _sigmas(steps: int) -> tuple[float, ...]:
    return tuple(float(x) for x in torch.linspace(1, 0, steps + 1))


def _euler(steps: int, guidance: float | None = None) -> Course:
    sigmas = _sigmas(steps)
    weights = tuple(b - a for a, b in itertools.pairwise(sigmas))
    return Course(sigmas, guidance, weights)


def _polynomial(degree: int, seed: int = 0, bend: float = 1.0) -> Path:
    """Random coefficients for each branch; all but constant and slope times `bend`."""
    generator = torch.Generator().manual_seed(seed)
    parts = torch.randn(2, degree + 1, *SHAPE, generator=generator)
    parts[:, 2:] *= bend

    def output(sigma: float, branch: str) -> Tensor:
        terms = parts[GUIDED.index(branch)]
        return sum(c * sigma**power for power, c in enumerate(terms))

    return output


def _calibrated(path: Path, steps: int, branches: tuple[str, ...]) -> Gram:
    sigmas = _sigmas(steps)[:-1]
    rows = [path(sigma, branch).flatten() for branch in branches for sigma in sigmas]
    return Gram.of(sigmas, outputs_gram(torch.stack(rows)), branches)


@dataclass
class Ran:
    """A run: final latent, session, what each call computed, and what the solver was given."""

    final: Tensor
    session: Session
    given: list[dict[str, Tensor]]

    @property
    def computed(self) -> list[int]:
        """Steps whose first branch was computed."""
        return [r.step for r in self.session.stats.records if r.branch == "cond" and r.blocks_run]

    @property
    def reasons(self) -> set[str]:
        return {r.decision.reason for r in self.session.stats.records}


def _sample(
    policy: Auto,
    path: Path,
    course: Course,
    before: Callable[[int, SessionStore, Session], None] = lambda *_: None,
    transformer: Callable[[int], str] = lambda _: "transformer",
) -> Ran:
    """An Euler run from zeros under the engine's site `output`; `before` is called ahead of each step."""
    steps, guidance = len(course.sigmas) - 1, course.guidance
    branches = FORWARD if guidance is None else GUIDED
    session, store = Session(policy), SessionStore()
    latent, given = torch.zeros(SHAPE), []
    for index, (sigma, lower) in enumerate(zip(course.sigmas, course.sigmas[1:], strict=False)):
        before(index, store, session)
        outputs = {}
        for branch in branches:
            step = Step(index, steps, sigma, branch, course)
            call = Call(session, Where(transformer(index), branch), step, Grid(*SHAPE[2:]))
            known = path(sigma, branch)
            form = OutputForm(latent, 1, packed, return_dict=False)
            out = denoise(call, form, 1, store, lambda known=known: (known,))
            outputs[branch] = out[0]
        latent = latent + (lower - sigma) * _guided(outputs, guidance)
        given.append(outputs)
    return Ran(latent, session, given)


def _guided(outputs: dict[str, Tensor], guidance: float | None) -> Tensor:
    if guidance is None:
        return outputs["cond"]
    return outputs["uncond"] + guidance * (outputs["cond"] - outputs["uncond"])


def _exact(path: Path, course: Course) -> Tensor:
    return _sample(Auto(max_calls=len(course.sigmas)), path, course).final


def _error(found: Tensor, exact: Tensor) -> float:
    return float((found - exact).norm() / exact.norm())


CASES = [(FORWARD, None), (GUIDED, GUIDANCE)]
each_case = pytest.mark.parametrize(("branches", "guidance"), CASES, ids=["cond", "both"])


@each_case
@pytest.mark.parametrize(
    ("degree", "parameters"),
    [(1, {"max_calls": 3}), (2, {"max_calls": 6, "warmup": 2, "cooldown": 1})],
    ids=["line", "parabola"],
)
def test_what_the_nodes_determine_is_integrated_exactly(degree, parameters, branches, guidance):
    """A line is known from two nodes, a parabola from three: forecast and correction leave what the ridge does."""
    path, course = _polynomial(degree), _euler(20, guidance)
    policy = Auto(gram=_calibrated(path, 20, branches), **parameters)
    ran = _sample(policy, path, course)
    assert len(ran.computed) == parameters["max_calls"]
    assert _error(ran.final, _exact(path, course)) < 5e-4


def test_plain_reuse_is_far_from_it():
    """The same schedule without forecast and correction misses by what those two repair."""
    path, course = _polynomial(1), _euler(20)
    ran = _sample(Auto(max_calls=3, gram=_calibrated(path, 20, FORWARD)), path, course)
    nodes = [max(s for s in ran.computed if s <= index) for index in range(20)]
    held = sum(
        w * path(course.sigmas[s], "cond") for w, s in zip(course.weights, nodes, strict=True)
    )
    assert _error(held, _exact(path, course)) > 0.02


@each_case
def test_the_solver_is_given_forecast_and_correction(branches, guidance):
    """During each gap the guided sum is (H V_s + forecast + correction of the gap before - its forecast) / H."""
    path, course = _polynomial(3), _euler(20, guidance)
    gram = _calibrated(path, 20, branches)
    ran = _sample(Auto(max_calls=5, gram=gram), path, course)
    chart = plan(gram, course)

    def v(i):
        return _guided({b: path(course.sigmas[i], b) for b in branches}, guidance)

    def d(i):
        zero = torch.zeros(SHAPE)
        sigma = course.sigmas[i]
        return path(sigma, "cond") - path(sigma, "uncond") if guidance else zero

    def told(p, s, e):
        level, before, difference = chart.forecast(p, s, e)
        back = v(p) - v(s) if p is not None else 0 * v(s)
        return level * v(s) + before * back + difference * d(s)

    def known(p, s, e):
        after, before, difference, difference_after = chart.correction(p, s, e)
        back = v(p) - v(s) if p is not None else 0 * v(s)
        ahead = after * (v(e) - v(s)) + before * back
        return ahead + difference * d(s) + difference_after * d(e)

    nodes = [None, None, *ran.computed, 20]
    assert len(ran.computed) == 5
    for pp, p, s, e in zip(nodes, nodes[1:], nodes[2:], nodes[3:], strict=False):
        span = chart.span(s, e)
        owed = known(pp, p, s) - told(pp, p, s) if p is not None else 0.0
        expected = v(s) + (told(p, s, e) + owed) / span
        for index in range(s, e):
            torch.testing.assert_close(
                _guided(ran.given[index], guidance), expected, atol=2e-5, rtol=1e-4
            )


def test_what_depends_on_the_difference_goes_into_uncond():
    """cond is given a mix of its own outputs alone."""
    path, course = _polynomial(3), _euler(20, GUIDANCE)
    other = replace_branch(path, "uncond", _polynomial(3, seed=7))
    gram = _calibrated(path, 20, GUIDED)
    runs = [_sample(Auto(max_calls=5, gram=gram), p, course) for p in (path, other)]
    for one, two in zip(runs[0].given, runs[1].given, strict=True):
        assert torch.equal(one["cond"], two["cond"])
        assert not torch.equal(one["uncond"], two["uncond"])


def replace_branch(path: Path, branch: str, other: Path) -> Path:
    return lambda sigma, asked: (other if asked == branch else path)(sigma, asked)


@pytest.mark.parametrize("steps", [5, 8, 20, 50])
@pytest.mark.parametrize("calls", [1, 3, 4, 10, 99])
@pytest.mark.parametrize("gram", [None, "own"])
def test_max_calls_is_kept(steps, calls, gram):
    """Whatever the number of steps, but for the floor: a gap has at most 16."""
    path = _polynomial(3)
    known = _calibrated(path, 20, GUIDED) if gram else None
    ran = _sample(Auto(max_calls=calls, gram=known), path, _euler(steps, GUIDANCE))
    assert len(ran.computed) == min(steps, max(calls, -(-steps // HORIZON)))
    assert all(r.blocks_run == (r.step in ran.computed) for r in ran.session.stats.records)


def test_a_quarter_is_the_default():
    """Rounded up."""
    ran = _sample(Auto(), _polynomial(3), _euler(50, GUIDANCE))
    assert len(ran.computed) == 13


@pytest.mark.parametrize(
    ("parameters", "most"),
    [
        ({"max_calls": 8, "warmup": 10}, 13),
        ({"max_calls": 8, "warmup": 3, "cooldown": 2}, 8),
        ({"max_calls": 12, "cooldown": 4}, 12),
        ({"max_calls": 4, "max_skips": 4}, 11),
        ({"max_calls": 30, "steps": (10, 40)}, 30),
    ],
    ids=str,
)
def test_ends_and_limits_are_part_of_the_budget(parameters, most):
    """Warm-up, cooldown, `steps` and `max_skips` are obeyed, and what they compute isn't computed once more."""
    policy = Auto(**parameters)
    computed = set(_sample(policy, _polynomial(3), _euler(50, GUIDANCE)).computed)
    first, end = policy.steps[0], policy.steps[1] or 50
    forced = {*range(policy.warmup), *range(first), *range(end, 50)}
    forced |= set(range(50 - policy.cooldown, 50))
    assert forced <= computed
    assert len(computed) <= most
    gaps = sorted({*computed, 50})
    longest = max(b - a for a, b in itertools.pairwise(gaps))
    assert longest <= (policy.max_skips or HORIZON - 1) + 1


@each_case
def test_a_budget_for_all_steps_is_the_uncached_run(branches, guidance):
    """The solver is given each output as it is, bit for bit."""
    path, course = _polynomial(3), _euler(20, guidance)
    ran = _sample(Auto(max_calls=20, gram=_calibrated(path, 8, branches)), path, course)
    for sigma, outputs in zip(course.sigmas, ran.given, strict=False):
        assert all(torch.equal(outputs[b], path(sigma, b)) for b in branches)


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_few_steps_are_computed_in_full(steps):
    """Distilled models have nothing to foretell."""
    ran = _sample(Auto(max_calls=1), _polynomial(3), _euler(steps, GUIDANCE))
    assert ran.computed == list(range(steps))
    assert ran.reasons == {"few steps"}


@pytest.mark.parametrize(
    "change",
    [
        {"weights": None},
        {"sigmas": (1.0, 0.8, 0.8, 0.6, 0.6, 0.4, 0.4, 0.2, 0.0)},
        {"sigmas": (80.0, 40.0, 20.0, 10.0, 5.0, 2.0, 1.0, 0.5, 0.0)},
    ],
    ids=["weights", "repeated", "not flow"],
)
def test_unknown_solvers_are_computed_in_full(change):
    """Those that aren't linear, evaluate twice at a level (Heun), or measure noise otherwise."""
    course = replace(_euler(8), **change)
    ran = _sample(Auto(max_calls=2), _polynomial(1), course)
    assert ran.computed == list(range(8))
    assert ran.reasons == {"unknown solver"}


def test_a_pipeline_that_tells_no_course_is_computed_in_full():
    """A bare transformer says nothing of its solver."""
    state = BranchState(Snapshot(Step(0), torch.zeros(SHAPE)))
    assert Auto().forced(state, Step(3, 8)).reason == "unknown solver"


def test_another_shape_is_computed_in_full():
    """What was calibrated at one size says nothing of another."""
    gram = _calibrated(_polynomial(1), 8, FORWARD)
    own, other = (
        _sample(Auto(max_calls=2, gram=gram, shape=shape), _polynomial(1), _euler(8))
        for shape in (SHAPE[1:], (2, 3, 8, 8))
    )
    assert len(own.computed) == 2
    assert other.computed == list(range(8))
    assert other.reasons == {"calibrated for another shape"}
    assert torch.equal(other.final, _exact(_polynomial(1), _euler(8)))


def _target(path: Path, gram: Gram, target: float, trust: float = 1.0, steps: int = 50) -> Ran:
    policy = Auto(target_psnr=target, gram=gram, trust=trust, level=0.0)
    return _sample(policy, path, _euler(steps))


def test_a_higher_target_takes_more_calls():
    """Up to all steps, and no further."""
    path = _polynomial(4)
    gram = _calibrated(path, 50, FORWARD)
    counts = [len(_target(path, gram, t).computed) for t in (10.0, 30.0, 50.0, 99.0)]
    assert counts == sorted(counts)
    assert counts[0] < counts[1] < counts[2] <= 50
    assert len(_target(path, gram, 99.0, steps=12).computed) <= 12


def test_surprises_take_more_calls():
    """A run that bends more than the calibrated ones is computed more often, but only as far as it is trusted."""
    calm, bent = _polynomial(4), _polynomial(4, bend=2.0)
    gram = _calibrated(calm, 50, FORWARD)
    believed, half, ignored = (len(_target(bent, gram, 30.0, t).computed) for t in (1.0, 0.5, 0.0))
    expected = len(_target(calm, gram, 30.0).computed)
    assert believed > half > ignored == expected
    assert believed <= 50


def test_no_skip_hides_what_is_not_a_number():
    """From the step on whose output is nan, all that the solver is given is nan: the final latent shows it."""
    path, course = _polynomial(2), _euler(20)
    gram = _calibrated(path, 20, FORWARD)

    def broken(sigma: float, branch: str) -> Tensor:
        return path(sigma, branch) * (torch.nan if sigma < 0.8 else 1.0)

    for limit in ({"max_calls": 6}, {"target_psnr": 40.0, "level": 0.0}):
        ran = _sample(Auto(gram=gram, **limit), broken, course)
        first = min(s for s in ran.computed if course.sigmas[s] < 0.8)
        assert [bool(g["cond"].isnan().all()) for g in ran.given] == [i >= first for i in range(20)]
        assert ran.final.isnan().all()


def test_a_run_that_loses_its_state_goes_on():
    """What was evicted is computed again, and the rest of the schedule is kept."""
    path, course = _polynomial(2), _euler(20, GUIDANCE)
    gram = _calibrated(path, 20, GUIDED)
    policy = Auto(max_calls=5, gram=gram)
    whole = _sample(policy, path, course)
    lost = next(s for s in range(1, 20) if s not in whole.computed)

    def evict(index, store, session):
        if index == lost:
            store.drop(session)

    ran = _sample(policy, path, course, before=evict)
    again = [r.decision.reason for r in ran.session.stats.records if r.step == lost]
    assert again == ["no state", "as the branch before"]
    assert len(ran.computed) <= len(whole.computed) + REBUILD
    assert _error(ran.final, _exact(path, course)) < 0.05


@pytest.mark.parametrize("lost", ["cond", "uncond"])
def test_one_branch_alone_may_lose_its_state(lost):
    """The other one's schedule doesn't fill the gap with what isn't there."""
    path, course = _polynomial(2), _euler(20, GUIDANCE)
    policy = Auto(max_calls=5, gram=_calibrated(path, 20, GUIDED))
    skipped = next(s for s in range(1, 20) if s not in _sample(policy, path, course).computed)

    def lose(index, store, session):
        if index == skipped:
            session.states.pop(Where("transformer", lost))

    ran = _sample(policy, path, course, before=lose)
    at = {r.branch: r.decision for r in ran.session.stats.records if r.step == skipped}
    assert at[lost].action is Action.RECOMPUTE
    assert at["uncond"].action is Action.RECOMPUTE
    assert ran.final.isfinite().all()
    assert _error(ran.final, _exact(path, course)) < 0.2


def test_a_second_transformer_starts_anew():
    """At the switch both branches are computed, and the budget counts what the first one was to spend."""
    path, course = _polynomial(2), replace(_euler(20, GUIDANCE), switch=9)
    policy = Auto(max_calls=6, gram=_calibrated(path, 20, GUIDED))
    ran = _sample(policy, path, course, transformer=lambda i: "transformer_2" if i >= 9 else "one")
    assert 9 in ran.computed
    assert len(ran.computed) <= 7
    assert _error(ran.final, _exact(path, course)) < 0.05


def test_batched_branches_take_the_forecast_of_one():
    """A pipeline that calls both at once gets a mix without difference terms, the same for both."""
    gram = _calibrated(_polynomial(2), 8, GUIDED)
    course = _euler(8, GUIDANCE)
    step = Step(0, 8, 1.0, "cond_uncond", course)
    track = Auto(max_calls=2, gram=gram).note(BranchState(), step, torch.zeros(SHAPE))
    alone = plan(gram, replace(course, guidance=None))
    assert track.mix.differences == (0.0, 0.0)
    assert track.plan.schedule(2) == alone.schedule(2)
