"""When to compute, and what to use in between: schedules of least expected error, by dynamic programming.

Write V_i for the guided output at step i, D_i for cond - uncond, w_i for the output's weight in the final latent (the
solver's own; Euler: sigma_{i+1} - sigma_i). A *gap* is a computed step s and the steps skipped after it, up to the next
computed step e; p is the computed step before s. What a gap adds to the latent is foretold at s,

    sum w_i V_i  ~  H V_s + a V_s + b (V_p - V_s) + c D_s,              H = sum w_i over s <= i < e,

and known better at e, from V_e - V_s, V_p - V_s, D_s and D_e. All coefficients are least squares fits to the
calibrated Gram matrix, so a gap costs, in closed form, the error left *after* that correction, plus what the foretold
position's error does to V_e. Both count by what they grow to until the end. At an early noise level, the latent holds
1 - sigma of the content: an error there ends 1 / (1 - sigma) as large, and the model's answer to it, its Jacobian, has
the size 1 / (1 - sigma) where it follows the latent and 1 / sigma where it holds on to its content.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from warpcache_ray.core.gram import GUIDED, Gram
from warpcache_ray.core.types import Course

if TYPE_CHECKING:
    from torch import Tensor

HORIZON = 16
"""Longest gap, in steps."""
RIDGE = 1e-4
EMPTY = 1e-12
"""Features this much weaker than the strongest aren't there (a step without p, a model without uncond)."""
NEAR_NOISE = 0.01
"""Keeps 1 / (1 - sigma) finite at pure noise."""
HOLD_SHARE = 0.3
"""Weight of 1 / sigma in the Jacobian: the share of an error's norm that the model doesn't follow, measured on the
toy world."""


class Forecast(NamedTuple):
    """What a gap's sum is, beside H V_s, in terms of V_s, V_p - V_s and D_s."""

    level: float
    before: float
    difference: float


class Correction(NamedTuple):
    """The same once e is known, in terms of V_e - V_s, V_p - V_s, D_s and D_e."""

    after: float
    before: float
    difference: float
    difference_after: float


@dataclass(frozen=True, eq=False, slots=True)
class Plan:
    """Expected errors and coefficients of all gaps of one run, and the cheapest way on from each computed step.

    Indices: [s, e - s - 1, k] with k = s - p, or 0 where there is no p; e = n ends the run. `ways[b][s, k]` is the
    least error of the rest of the run when b more calls follow s, and `turns[b][s, k]` the length of the gap to take.
    """

    weights: tuple[float, ...]
    foretold: Tensor
    corrected: Tensor
    errors: Tensor
    ways: tuple[Tensor, ...]
    turns: tuple[Tensor, ...]
    cond: Tensor
    """Gram matrix of the cond branch, (n, n)."""

    @property
    def steps(self) -> int:
        """How many there are."""
        return len(self.weights)

    def span(self, s: int, e: int) -> float:
        """H of a gap."""
        return sum(self.weights[s:e])

    def forecast(self, p: int | None, s: int, e: int) -> Forecast:
        """What s foretells of the gap."""
        return Forecast(*self.foretold[s, e - s - 1, _back(p, s)].tolist())

    def correction(self, p: int | None, s: int, e: int) -> Correction:
        """What e knows of the gap."""
        return Correction(*self.corrected[s, e - s - 1, _back(p, s)].tolist())

    def error(self, p: int | None, s: int, e: int) -> float:
        """Expected square error of the final latent, per element, from this gap."""
        return float(self.errors[s, e - s - 1, _back(p, s)])

    def rest(self, p: int | None, s: int, calls: int) -> float:
        """Expected error of the rest of the run with `calls` more calls after s."""
        return float(self.ways[calls][s, _back(p, s)])

    def turn(self, p: int | None, s: int, calls: int) -> int:
        """The next computed step, of at most `calls` more; n if there is none."""
        return s + 1 + int(self.turns[calls][s, _back(p, s)])

    def schedule(self, calls: int) -> tuple[int, ...]:
        """The best computed steps of a run with this many calls."""
        steps, p = [0], None
        for left in range(min(calls, self.steps) - 1, -1, -1):
            s = steps[-1]
            e = self.turn(p, s, left)
            if e >= self.steps:
                break
            p = s
            steps.append(e)
        return tuple(steps)


def _back(p: int | None, s: int) -> int:
    return 0 if p is None or s - p > HORIZON else s - p


@lru_cache(maxsize=8)
def plan(gram: Gram, course: Course, answer: float = 1.0) -> Plan:
    """The plan of a run whose weights are known; `answer` scales the Jacobian that the model is believed to have."""
    import torch

    assert course.weights is not None
    sigmas = course.sigmas[:-1]
    n, weights = len(sigmas), torch.tensor(course.weights, dtype=torch.float64)
    table = _Table(gram.at(sigmas), gram.branches, course.guidance, weights)
    foretold, before_error = table.fit(table.told())
    corrected, after_error = table.fit(table.known())
    final = table.ends == n
    corrected[final], after_error[final] = 0.0, before_error[final]
    errors = _weighed(after_error, before_error, course.sigmas, answer, table.ends)
    errors[table.ends > n] = torch.inf
    ways, turns = _programme(errors, n)
    cond = table.products[:n, :n].clone()
    return Plan(course.weights, foretold, corrected, errors, ways, turns, cond)


Rows = tuple[tuple["Tensor", "Tensor | float"], ...]
"""A vector for every (s, e, p): a sum of rows of the table, by index and factor."""


class _Table:
    """Inner products of all that the fits are made of, for every (s, e, p) at once."""

    def __init__(
        self, products: Tensor, branches: tuple[str, ...], guidance: float | None, weights: Tensor
    ) -> None:
        import torch

        self.products, self.n = products, len(weights)
        n = self.n
        eye = torch.eye(n, dtype=torch.float64)
        if branches == GUIDED and guidance is not None and guidance > 1:
            guided = torch.cat((guidance * eye, (1 - guidance) * eye), 1)
            difference = torch.cat((eye, -eye), 1)
        else:
            guided = torch.nn.functional.pad(eye, (0, len(products) - n))
            difference = torch.zeros_like(guided)
        # Rows: V_0..V_{n-1}, D_0..D_{n-1}, then the running sums of w V.
        sums = torch.nn.functional.pad((weights[:, None] * guided).cumsum(0), (0, 0, 1, 0))
        rows = torch.cat((guided, difference, sums))
        self.all = rows @ products @ rows.T
        spans = torch.nn.functional.pad(weights.cumsum(0), (1, 0))
        s = torch.arange(n)[:, None, None]
        back = torch.arange(HORIZON + 1)[None, None, :]
        gap = torch.arange(HORIZON)[None, :, None]
        shape = (n, HORIZON, HORIZON + 1)
        self.s = s.expand(shape)
        self.ends = (s + 1 + gap).expand(shape)
        self.p = (s - back).expand(shape)
        # Without a step before, V_p - V_s is nothing.
        self.p = torch.where(self.p >= 0, self.p, self.s)
        self.e = self.ends.clamp(max=n)
        span = spans[self.e] - spans[self.s]
        self.target: Rows = ((2 * n + self.e, 1.0), (2 * n + self.s, -1.0), (self.s, -span))

    def told(self) -> list[Rows]:
        """V_s, V_p - V_s, D_s."""
        s, n = self.s, self.n
        return [((s, 1.0),), ((self.p, 1.0), (s, -1.0)), ((n + s, 1.0),)]

    def known(self) -> list[Rows]:
        """V_e - V_s, V_p - V_s, D_s, D_e."""
        s, p, n = self.s, self.p, self.n
        e = self.e.clamp(max=n - 1)
        after, before = ((e, 1.0), (s, -1.0)), ((p, 1.0), (s, -1.0))
        return [after, before, ((n + s, 1.0),), ((n + e, 1.0),)]

    def fit(self, features: list[Rows]) -> tuple[Tensor, Tensor]:
        """Coefficients (s, e, p, features) of the least squares, and the mean square that is left (s, e, p)."""
        import torch

        normal = [[self._product(a, b) for b in features] for a in features]
        matrix = torch.stack([torch.stack(row, -1) for row in normal], -2)
        moments = torch.stack([self._product(a, self.target) for a in features], -1)
        power = matrix.diagonal(dim1=-2, dim2=-1)
        empty = power < EMPTY * power.amax()
        moments = moments.masked_fill(empty, 0.0)
        damping = torch.where(empty, 1.0, RIDGE * power)
        solved = torch.linalg.solve(matrix + torch.diag_embed(damping), moments)
        explained = (solved * (2 * moments - (matrix @ solved[..., None])[..., 0])).sum(-1)
        left = (self._product(self.target, self.target) - explained).clamp_min(0.0)
        # A gap of one step is that step: nothing to foretell, and no rounding errors in its place.
        solved[:, 0], left[:, 0] = 0.0, 0.0
        return solved, left

    def _product(self, one: Rows, other: Rows) -> Tensor:
        terms = (a * b * self.all[i, j] for i, a in one for j, b in other)
        return sum(terms, start=0 * self.all[0, 0])


def _weighed(
    corrected: Tensor, foretold: Tensor, levels: tuple[float, ...], answer: float, ends: Tensor
) -> Tensor:
    """Square errors at the end of the run: each gap's, and what its foretold position does to the next output."""
    growth, effect = _amplified(levels, answer, ends)
    return growth * (corrected + effect * foretold)


def amplification(levels: tuple[float, ...]) -> Tensor:
    """(s, e - s - 1): what a square error in the latent at e grows to until the end, if nothing corrects it."""
    import torch

    n = len(levels) - 1
    ends = torch.arange(1, n + 1)[:, None] + torch.arange(n)[None, :]
    growth, effect = _amplified(levels, 1.0, ends)
    return growth * (1 + effect)


def _amplified(levels: tuple[float, ...], answer: float, ends: Tensor) -> tuple[Tensor, Tensor]:
    """For gaps from s (the first index) to `ends`: growth of a square error, and of the foretold position's effect."""
    import torch

    sigma = torch.tensor(levels, dtype=torch.float64)
    n = len(levels) - 1
    end = ends.clamp(max=n)
    growth = 1 / (1 - sigma + NEAR_NOISE)
    jacobian = 1 / (1 - sigma + 2 * NEAR_NOISE) + HOLD_SHARE / sigma.clamp_min(0.03)
    start = torch.arange(len(ends)).reshape(-1, *(1,) * (ends.dim() - 1)).expand_as(ends)
    reach = (sigma[start] - sigma[(2 * end - start).clamp(max=n)]) / 2
    return growth[end] ** 2, (answer * jacobian[end] * reach) ** 2 * (end < n)


def _programme(errors: Tensor, n: int) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Backward recursion over the number of calls still to come."""
    import torch

    s = torch.arange(n)[:, None]
    gap = torch.arange(HORIZON)[None, :]
    end = s + 1 + gap
    last = torch.where((end == n)[:, :, None], errors, torch.inf)
    ways: list[Tensor] = []
    turns: list[Tensor] = []
    for calls in range(n):
        if calls == 0:
            ahead = last
        else:
            onwards = ways[-1][end.clamp(max=n - 1), gap + 1]
            ahead = torch.where((end < n)[:, :, None], errors + onwards[:, :, None], last)
        best, turn = ahead.min(1)
        ways.append(best)
        turns.append(turn)
    return tuple(ways), tuple(turns)
