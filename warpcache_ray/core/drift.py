"""Relative change of features, kept as sums until compared.

A mean of means over token shards depends on how the tokens are cut; sums don't. So each function gives sums per
sample, ranks add theirs, and `ratio` divides once, last.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def l1_sums(current: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """(Σ|current - reference|, Σ|reference|) per sample, each (batch,), of (batch, tokens, channels)."""
    return (current - reference).abs().float().sum((1, 2)), reference.abs().float().sum((1, 2))


def token_l1(current: Tensor, reference: Tensor) -> Tensor:
    """(batch, tokens): L1 change of each token."""
    return (current - reference).abs().float().sum(-1)


def ratio(difference: float, magnitude: float) -> float:
    """Relative change; infinite where something came from nothing."""
    if magnitude > 0:
        return difference / magnitude
    return 0.0 if difference == 0 else math.inf


def furthest(drifts: Sequence[float]) -> float:
    """The largest; one that is no number counts as larger than all."""
    return max(drifts, key=lambda drift: math.inf if math.isnan(drift) else drift)
