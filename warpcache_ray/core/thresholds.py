"""Thresholds that follow motion and the denoising phase (WorldCache, arXiv 2603.22286)."""

from __future__ import annotations


def motion_adaptive(base: float, alpha: float, velocity: float) -> float:
    """τ_CFC = τ0 / (1 + α v), eq. 3: fast change of the input tightens the threshold."""
    return base / (1.0 + alpha * velocity)


def phase_adaptive(threshold: float, beta: float, progress: float) -> float:
    """τ_ATS = τ_CFC (1 + β t/T), eq. 13: late steps refine, so they may drift further."""
    return threshold * (1.0 + beta * progress)
