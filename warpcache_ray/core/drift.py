"""Relative change of features, kept as sums until compared.

A mean of means over token shards depends on how the tokens are cut; sums don't. So each function gives sums per
sample, ranks add theirs, and `ratio` divides once, last.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from warpcache_ray.core.types import Trail

if TYPE_CHECKING:
    from torch import Tensor


def l1_sums(current: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """(Σ|current - reference|, Σ|reference|) per sample, each (batch,), of (batch, ...)."""
    return l1_sum(current - reference), l1_sum(reference)


def l1_sum(features: Tensor) -> Tensor:
    """Σ|features| per sample (batch,)."""
    return features.abs().float().flatten(1).sum(1)


def token_l1(current: Tensor, reference: Tensor) -> Tensor:
    """(batch, tokens): L1 change of each token."""
    return (current - reference).abs().float().sum(-1)


def ratio(difference: float, magnitude: float) -> float:
    """Relative change; infinite where something came from nothing."""
    if magnitude > 0:
        return difference / magnitude
    return 0.0 if difference == 0 else math.inf


def token_cosine(current: Tensor, reference: Tensor) -> Tensor:
    """(batch, tokens): 1 - cos of each token's channels, as half the squared distance of the unit vectors, which keeps
    small angles and takes two zero vectors for equal."""
    now, then = _unit(current), _unit(reference)
    return (now - then).square().sum(-1) / 2


def token_l2(current: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """(‖current - reference‖², ‖reference‖²) of each token, (batch, tokens)."""
    now, then = current.float(), reference.float()
    return (now - then).square().sum(-1), then.square().sum(-1)


def gathered(trail: Trail | None, drifts: Sequence[float]) -> tuple[float, ...]:
    """Drift of each sample since the last recompute: what the trail holds, and this step's."""
    before = trail.drift if trail is not None and trail.drift else (0.0,) * len(drifts)
    return tuple(sum(pair) for pair in zip(before, drifts, strict=True))


def furthest(drifts: Sequence[float]) -> float:
    """The largest; one that is no number counts as larger than all."""
    return max(drifts, key=lambda drift: math.inf if math.isnan(drift) else drift)


def _unit(tokens: Tensor) -> Tensor:
    squares = tokens.float().square().sum(-1, keepdim=True)
    return tokens.float() / squares.sqrt().clamp_min(1e-12)
