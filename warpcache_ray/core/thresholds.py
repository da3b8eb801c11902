"""Thresholds that follow motion and the denoising phase (WorldCache, arXiv 2603.22286; warp-cache's README)."""

from __future__ import annotations

import math


def motion_adaptive(base: float, alpha: float, velocity: float) -> float:
    """τ_CFC = τ0 / (1 + α v), eq. 3: fast change of the input tightens the threshold."""
    return base / (1.0 + alpha * velocity)


def phase_adaptive(threshold: float, beta: float, progress: float) -> float:
    """τ_ATS = τ_CFC (1 + β t/T), eq. 13: late steps refine, so they may drift further."""
    return threshold * (1.0 + beta * progress)


def motion_exponential(base: float, scale: float, motion: float) -> float:
    """base · exp(-scale · motion), warp-cache's law for motion in [0, 1]."""
    return base * math.exp(-scale * motion)


def phase_multiplier(fraction: float | None) -> float:
    """warp-cache's factor in [0.5, 1.5]: 0.5 in the first fifth of the run, whose steps lay the structure, 1.5 in the
    last fifth, a line between; 1 where the fraction isn't known. (The seed leaves the breakpoints open.)"""
    return 1.0 if fraction is None else min(max((fraction - 0.5) / 0.6, -0.5), 0.5) + 1.0
