"""Parameters of published policies, from what calibration runs recorded: pure numpy, nothing runs a model here."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


class PolynomialFit(NamedTuple):
    """Coefficients, the highest power first, and the share of the variance that they explain (1 is all of it)."""

    coefficients: tuple[float, ...]
    explained: float


class SchedulePath(NamedTuple):
    """The steps to compute, and the errors of the runs of skips between them, the largest first."""

    schedule: tuple[int, ...]
    errors: tuple[float, ...]


def magnitude_ratios(norms: ArrayLike) -> tuple[float, ...]:
    """MagCache's γ (arXiv 2506.09045): γ_t = mean(‖r_t‖ / ‖r_{t-1}‖) over runs and tokens, 1 for the first step.

    `norms` are those of the residuals of uncached runs, (runs, steps) or (runs, steps, tokens).

    Raises:
        ValueError: another shape, or norms that aren't above 0.
    """
    recorded = _floats(norms, "norms", (2, 3), "(runs, steps) or (runs, steps, tokens)")
    if not (recorded > 0).all():
        raise ValueError("norms: all must be above 0")
    ratios = recorded[:, 1:] / recorded[:, :-1]
    means = np.moveaxis(ratios, 1, 0).reshape(ratios.shape[1], -1).mean(1)
    return (1.0, *map(float, means))


def change_polynomial(
    input_changes: ArrayLike, output_changes: ArrayLike, degree: int = 4
) -> PolynomialFit:
    """TeaCache's rescaling (arXiv 2411.19108): the polynomial by which the relative L1 change of the input from one
    step to the next foretells the output's, by least squares over all pairs of uncached runs.

    Raises:
        ValueError: the two differ in shape, hold what is no number, or are too few for the degree.
    """
    x, y = np.ravel(np.asarray(input_changes, float)), np.ravel(np.asarray(output_changes, float))
    if x.shape != y.shape or len(np.unique(x)) <= degree:
        raise ValueError(
            f"input_changes, output_changes: {x.size} and {y.size} values; both must hold as many, of which more than "
            f"{degree} different"
        )
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("input_changes, output_changes: all must be finite")
    # Fitted on x / max|x|: fourth powers of small changes would drown in rounding.
    scale = float(np.abs(x).max())
    scaled = np.polyfit(x / scale, y, degree)
    coefficients = scaled / scale ** np.arange(degree, -1, -1)
    rest, spread = y - np.polyval(coefficients, x), y - y.mean()
    total = float(spread @ spread)
    explained = 1.0 - float(rest @ rest) / total if total > 0 else 1.0
    return PolynomialFit(tuple(map(float, coefficients)), explained)


def minimax_schedule(errors: ArrayLike, budget: int) -> SchedulePath:
    """LeMiCa's schedule (arXiv 2511.00090): the path over the steps whose errors, sorted from the largest, are the
    lexicographically least among all paths that compute exactly `budget` steps.

    `errors` (steps, steps + 1): [i, j] is the error of the final output when steps i+1..j-1 reuse step i and all others
    are computed; column `steps` stands for reuse to the end, infinite where the last step must be computed. Only
    entries with j > i count. The first step is always computed.

    Raises:
        ValueError: another shape, a budget that doesn't fit, or no path of finite errors.
    """
    table = _floats(errors, "errors", (2,), "(steps, steps + 1)", finite=False)
    steps = len(table)
    if table.shape != (steps, steps + 1):
        raise ValueError(f"errors: shape {table.shape}; it must be (steps, steps + 1)")
    if not 1 <= budget <= steps:
        raise ValueError(f"budget: {budget!r} is not allowed; it must be in 1 to {steps} steps")
    # Equal additions keep the order of two sorted vectors of one length, so the best path to each step suffices.
    best: dict[int, SchedulePath] = {0: SchedulePath((0,), ())}
    for _ in range(budget - 1):
        best = {
            j: min(paths, key=lambda path: path.errors)
            for j in range(1, steps)
            if (paths := _arriving(best, j, table, (j,)))
        }
    ends = _arriving(best, steps, table, ())
    if not ends:
        raise ValueError(f"errors: no path of finite errors computes {budget} steps")
    return min(ends, key=lambda path: path.errors)


def _arriving(
    best: dict[int, SchedulePath], j: int, table: Floats, step: tuple[int, ...]
) -> list[SchedulePath]:
    return [
        SchedulePath(path.schedule + step, _sorted_with(path.errors, float(table[i, j])))
        for i, path in best.items()
        if i < j and np.isfinite(table[i, j])
    ]


def _sorted_with(errors: tuple[float, ...], error: float) -> tuple[float, ...]:
    return tuple(sorted((*errors, error), reverse=True))


def _floats(
    values: ArrayLike, name: str, dimensions: tuple[int, ...], shape: str, finite: bool = True
) -> Floats:
    array = np.asarray(values, float)
    if array.ndim not in dimensions:
        raise ValueError(f"{name}: shape {array.shape}; it must be {shape}")
    if finite and not np.isfinite(array).all():
        raise ValueError(f"{name}: all must be finite")
    return array
