"""Gradient magnitude similarity deviation: a perceptual distance that needs no trained network.

W. Xue, L. Zhang, X. Mou, A. Bovik, "Gradient Magnitude Similarity Deviation" (IEEE TIP 2014, arXiv 1308.3052),
equations 1 to 5.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import convolve

_C = 170.0
"""The paper's constant, for intensities in [0, 255]."""

_PREWITT = np.array([[1.0, 0.0, -1.0]] * 3) / 3
_LUMA = np.array([0.299, 0.587, 0.114])


def gmsd(video: NDArray[np.uint8], reference: NDArray[np.uint8]) -> float:
    """Mean GMSD of the frames of two (T, H, W, 3) videos: 0 for equal ones, larger is worse."""
    pairs = zip(video, reference, strict=True)
    return float(np.mean([gmsd_image(v @ _LUMA, r @ _LUMA) for v, r in pairs]))


def gmsd_image(image: NDArray[np.float64], reference: NDArray[np.float64]) -> float:
    """GMSD of two (H, W) luminance images in [0, 255], halved by 2×2 averages as in the paper."""
    one, other = (_gradient(_halve(each)) for each in (image, reference))
    similarity = (2 * one * other + _C) / (one**2 + other**2 + _C)
    return float(np.std(similarity))


def _halve(image: NDArray[np.float64]) -> NDArray[np.float64]:
    rows, columns = image.shape[0] // 2, image.shape[1] // 2
    whole = image[: 2 * rows, : 2 * columns]
    halved: NDArray[np.float64] = whole.reshape(rows, 2, columns, 2).mean((1, 3))
    return halved


def _gradient(image: NDArray[np.float64]) -> NDArray[np.float64]:
    across = convolve(image, _PREWITT, mode="nearest")
    down = convolve(image, _PREWITT.T, mode="nearest")
    size: NDArray[np.float64] = np.hypot(across, down)
    return size
