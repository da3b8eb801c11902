"""How much a video moves, beside its uncached reference: a cache may dampen motion without looking bad."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def motion(video: NDArray[np.uint8]) -> float:
    """Mean absolute difference of neighbouring frames of a (T, H, W, 3) video; 0 for a single frame."""
    if len(video) < 2:
        return 0.0
    return float(np.abs(np.diff(video.astype(np.float32), axis=0)).mean())


def motion_ratio(video: NDArray[np.uint8], reference: NDArray[np.uint8]) -> float:
    """Motion of `video` divided by that of `reference`: below 1 it is dampened.

    1 if neither moves, infinite if only `video` does.
    """
    moved, expected = motion(video), motion(reference)
    if expected == 0:
        return 1.0 if moved == 0 else float("inf")
    return moved / expected
