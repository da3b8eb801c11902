"""Other policies than `auto`, in the same closed form: their own code, replayed on the run that the Gram matrix knows.

A Gram matrix has vectors: outputs in as few dimensions as there are steps, with the products of the real ones. A policy
for whole outputs decides and approximates on them as it would in a run; what it gets wrong in each gap, grown until the
end, is its expected error. So is EasyCache's L1, once the axes are turned at random. Policies that look into the blocks
can't be replayed: their features aren't in the matrix.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from warpcache_ray.core.gram import GUIDED, Gram
from warpcache_ray.core.policies.easycache import EasyCache
from warpcache_ray.core.policies.lemica import LeMiCa
from warpcache_ray.core.policies.magcache import MagCache
from warpcache_ray.core.policies.taylorseer import TaylorSeer
from warpcache_ray.core.policy import Policy, Reading
from warpcache_ray.core.schedule import amplification
from warpcache_ray.core.types import (
    BranchState,
    Course,
    Decision,
    Features,
    Grid,
    Outcome,
    Site,
    Step,
)
from warpcache_ray.tuning import fits
from warpcache_ray.tuning.outlook import predicted

ALONE = Grid(1, 1, 1)
INTERVALS = range(2, 11)
WARMUPS = (1, 3, 6)
EDGES = {"taylorseer": 12.0, "lemica": 8.0, "magcache": 4.0, "easycache": -7.0}
"""How many dB more real runs have than a replay says, beyond what they have for `auto`, as the demo models show (63
settings, within 1 to 5 dB). Where gaps are extrapolated, their errors cancel; where a latent's change is added to a
velocity, they add up."""
THRESHOLDS = (0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64)


@dataclass(frozen=True, slots=True)
class Rival:
    """A policy with its parameters, the calls that it makes of a run, and the closed form's dB, comparable to those of
    `auto`."""

    policy: Policy
    calls: int
    predicted: float


def rivals(gram: Gram, course: Course) -> list[Rival]:
    """All that can be replayed, each with many settings; constants come from the same matrix."""
    run = _vectors(gram, course)
    grown = amplification(course.sigmas)
    return [_replayed(policy, run, grown, course) for policy in _settings(run, course)]


def cheapest(found: Sequence[Rival], needed: float) -> dict[str, Rival]:
    """Of each policy the setting of fewest calls that has so many dB; those that never do aren't there."""
    best: dict[str, Rival] = {}
    for rival in found:
        name, known = rival.policy.name, best.get(rival.policy.name)
        if rival.predicted >= needed and (known is None or rival.calls < known.calls):
            best[name] = rival
    return best


def _vectors(gram: Gram, course: Course) -> Tensor:
    """Outputs (branches, steps, coordinates) with the products that the matrix has, per element of a latent."""
    n = len(course.sigmas) - 1
    values, vectors = torch.linalg.eigh(gram.at(course.sigmas[:-1]))
    flat = vectors * values.clamp_min(0).sqrt()
    random = torch.Generator().manual_seed(0)
    turn, _ = torch.linalg.qr(torch.randn(flat.shape, generator=random, dtype=torch.float64))
    run = (flat @ turn).reshape(len(gram.branches), n, -1)
    guided: Tensor = run if _guided(gram.branches, course) else run[:1]
    return guided


def _guided(branches: tuple[str, ...], course: Course) -> bool:
    return branches == GUIDED and course.guidance is not None and course.guidance > 1


def _mixed(outputs: Tensor, course: Course) -> Tensor:
    """What the solver is given of the branches (first axis)."""
    if len(outputs) == 1:
        return outputs[0]
    assert course.guidance is not None
    return outputs[1] + course.guidance * (outputs[0] - outputs[1])


def _settings(run: Tensor, course: Course) -> Iterator[Policy]:
    for warmup in WARMUPS:
        for interval in INTERVALS:
            yield TaylorSeer(interval=interval, warmup=warmup)
    for threshold in THRESHOLDS:
        yield EasyCache(threshold=threshold)
    guided = _mixed(run, course)
    ratios = fits.magnitude_ratios(run[0].norm(dim=1)[None].numpy())
    for threshold in THRESHOLDS:
        for retention in (0.1, 0.2):
            yield MagCache(
                ratios=ratios, threshold=threshold, retention=retention, site=Site.OUTPUT
            )
    errors = _reuse_errors(guided, course)
    for calls in range(4, len(guided) // 2 + 1, 2):
        path = fits.minimax_schedule(errors, calls)
        yield LeMiCa(schedule=path.schedule, schedule_steps=len(guided))


def _reuse_errors(run: Tensor, course: Course) -> Any:
    n, weights = len(run), torch.tensor(course.weights, dtype=torch.float64)
    errors = np.full((n, n + 1), np.inf)
    for i in range(n):
        missed = (weights[i:, None] * (run[i:] - run[i])).cumsum(0).norm(dim=1)
        errors[i, i + 1 :] = missed.numpy()
    return errors


def _replayed(policy: Policy, run: Tensor, grown: Tensor, course: Course) -> Rival:
    """The policy on the uncached trajectory, whose latents differ by the weighed outputs between."""
    assert course.weights is not None
    guided, n = _mixed(run, course), run.shape[1]
    weights = torch.tensor(course.weights, dtype=torch.float64)
    latents = torch.nn.functional.pad((weights[:, None] * guided).cumsum(0), (0, 0, 1, 0))
    states, memo = [BranchState() for _ in run], None
    computed, given = list[int](), run.clone()
    for i in range(n):
        step, peer = Step(i, n, course.sigmas[i], course=course), None
        features = Features(latents[i][None], latents[i][None], ALONE)
        for branch, state in enumerate(states):
            state = replace(state, memo=memo, peer=peer)
            decision, reading = _decided(policy, state, step, features)
            trail = policy.trail(state, step, features, reading, decision)
            if decision.skips:
                given[branch, i] = policy.approximate(state, features, reading, decision)[0]
                states[branch] = state.after_skip(trail)
            else:
                computed += [i] * (branch == 0)
                memo = policy.note(state, step, run[branch, i][None])
                snapshot = policy.remember(step, features, run[branch, i][None])
                states[branch] = state.after_recompute(snapshot, policy.window, trail)
            peer = Outcome(step, decision, given[branch, i][None])
    missed = weights[:, None] * (guided - _mixed(given, course))
    gaps = zip(computed, [*computed[1:], n], strict=True)
    error = sum(float(grown[s, e - s - 1] * missed[s:e].sum(0).square().sum()) for s, e in gaps)
    return Rival(policy, len(computed), predicted(error) + EDGES[policy.name])


def _decided(
    policy: Policy, state: BranchState, step: Step, features: Features
) -> tuple[Decision, Reading]:
    forced = policy.forced(state, step)
    if forced is not None:
        return forced, Reading()
    reading = _reading(policy, state, features)
    return policy.decide(state, step, reading), reading


def _reading(policy: Policy, state: BranchState, features: Features) -> Reading:
    measured = policy.measure(state, features)
    if measured is None:
        return Reading()
    rows = tuple(zip(*(column.tolist() for column in measured.sums), strict=True))
    return Reading(rows, ((),) * len(rows))
