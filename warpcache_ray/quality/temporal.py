"""How a video changes from frame to frame, by itself and beside a reference."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from warpcache_ray.quality.fidelity import psnr


def steadiness(video: NDArray[np.uint8]) -> float:
    """VBench's `temporal_flickering` (arXiv 2311.17982, section 3.1): (255 - mean absolute difference of neighbouring
    frames) / 255 of a (T, H, W, 3) video. 1 for one that stands still; it tells flicker only of scenes that do."""
    if len(video) < 2:
        return 1.0
    return float(1 - np.abs(np.diff(video.astype(np.float32), axis=0)).mean() / 255)


def change_psnr(video: NDArray[np.uint8], reference: NDArray[np.uint8]) -> float:
    """Temporal consistency with a reference: PSNR in dB of the differences between neighbouring frames, whose values
    span twice those of pixels. A constant error of all frames costs nothing, one that comes and goes does."""
    ours, theirs = (np.diff(each.astype(np.float32), axis=0) for each in (video, reference))
    return psnr(ours, theirs, peak=510.0)
