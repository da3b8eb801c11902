"""How near a video is to its uncached reference."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

PSNR_CAP = 99.0


def psnr(video: NDArray[np.generic], reference: NDArray[np.generic], peak: float = 255.0) -> float:
    """PSNR in dB over all frames of two videos (T, H, W, 3), or any two arrays whose values span `peak`; capped at 99
    (equal ones)."""
    if np.array_equal(video, reference):
        return PSNR_CAP
    return min(PSNR_CAP, float(peak_signal_noise_ratio(reference, video, data_range=peak)))


def ssim(video: NDArray[np.uint8], reference: NDArray[np.uint8]) -> float:
    """Mean SSIM of the frames of two (T, H, W, 3) videos."""
    pairs = zip(video, reference, strict=True)
    scores = [structural_similarity(r, v, channel_axis=-1, data_range=255) for v, r in pairs]
    return float(np.mean(scores))


def compare(
    pairs: Iterable[tuple[NDArray[np.uint8], NDArray[np.uint8]]],
) -> tuple[float, float, int]:
    """PSNR (dB) over all frames of two videos, mean SSIM, and how many frames that was; of pairs of (H, W, 3) frames as
    they come, so that no video is ever there as a whole."""
    errors, scores = [], []
    for frame, reference in pairs:
        errors.append(np.square(frame.astype(np.float32) - reference).mean(dtype=np.float64))
        scores.append(ssim(frame[None], reference[None]))
    error = float(np.mean(errors))
    decibels = PSNR_CAP if error == 0 else min(PSNR_CAP, 10 * float(np.log10(255**2 / error)))
    return decibels, float(np.mean(scores)), len(errors)
