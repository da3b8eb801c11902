"""Which tokens matter: channel variance of the probe (WorldCache, arXiv 2603.22286, eq. 4)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def token_saliency(probe: Tensor) -> Tensor:
    """(batch, tokens): S = Var over channels of (batch, tokens, channels)."""
    return probe.float().var(-1, correction=0)


def weighted_change(change: float, weighted: float, low: float, high: float, beta: float) -> float:
    """Σ c(1 + β Ŝ), eq. 5, with Ŝ = (S - low)/(high - low), from the two sums Σ c and Σ c·S.

    Ŝ needs the extremes of all shards, which are known only after the ranks have spoken; the sums let it be
    applied afterwards.
    """
    span = high - low
    return change if span <= 0 else change + beta * (weighted - low * change) / span
