"""The cost at which a method reaches a quality, from measured points only."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from typing import NamedTuple

TARGETS = (30.0, 35.0, 40.0)
"""PSNR in dB at which methods are compared."""


class Point(NamedTuple):
    """A setting's cost (calls, or what else is paid; above 0) and quality (dB)."""

    cost: float
    psnr: float


def front(points: Iterable[Point]) -> list[Point]:
    """The points that no other beats at the same or a lower cost, from cheap to dear: quality rises along it."""
    best: list[Point] = []
    for point in sorted(points, key=lambda p: (p.cost, -p.psnr)):
        if not best or point.psnr > best[-1].psnr:
            best.append(point)
    return best


def cost_at(along: list[Point], target: float) -> float | None:
    """The cost at which a front reaches `target`, PSNR being linear in the logarithm of the cost between neighbours.

    None if the front doesn't bracket the target: nothing is extrapolated.
    """
    for point in along:
        if point.psnr == target:
            return point.cost
    for low, high in itertools.pairwise(along):
        if low.psnr < target < high.psnr:
            part = (target - low.psnr) / (high.psnr - low.psnr)
            return math.exp((1 - part) * math.log(low.cost) + part * math.log(high.cost))
    return None


def nearest(points: Iterable[tuple[str, Point]], target: float) -> str | None:
    """The name of the point whose quality is nearest to `target`."""
    return min(points, key=lambda named: abs(named[1].psnr - target), default=(None,))[0]
