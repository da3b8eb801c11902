"""Extrapolation along the line through the last two residuals (WorldCache OSI, arXiv 2603.22286, eq. 8-10)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def gain_sums(probe: Tensor, latest: Tensor, previous: Tensor) -> tuple[Tensor, Tensor]:
    """(⟨p - p₂, p₁ - p₂⟩, ‖p₁ - p₂‖²) per sample, eq. 9, for probe residuals now, latest and previous."""
    source = (latest - previous).float()
    return ((probe - previous).float() * source).sum((1, 2)), source.square().sum((1, 2))


def gain(inner: float, square: float, limit: float) -> float:
    """γ* clamped to [0, limit]; 1 (plain reuse of the latest) where the two residuals are equal."""
    return 1.0 if square <= 0 else min(max(inner / square, 0.0), limit)


def extrapolate(latest: Tensor, previous: Tensor, gains: Tensor) -> Tensor:
    """r₂ + γ (r₁ - r₂), eq. 10, with one gain per sample (batch,)."""
    shape = (-1,) + (1,) * (latest.ndim - 1)
    return previous + gains.to(latest.dtype).view(shape) * (latest - previous)
