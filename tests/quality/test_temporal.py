from __future__ import annotations

import numpy as np
import pytest

from warpcache_ray.quality.fidelity import PSNR_CAP
from warpcache_ray.quality.temporal import change_psnr, steadiness


def video(*levels: int) -> np.ndarray:
    """Frames of one grey each."""
    return np.stack([np.full((8, 8, 3), level, np.uint8) for level in levels])


@pytest.mark.parametrize(
    ("levels", "expected"), [((7, 7, 7), 1.0), ((0, 255, 0), 0.0), ((0, 51, 51), 0.9), ((9,), 1.0)]
)
def test_steadiness_is_vbenchs_formula(levels: tuple[int, ...], expected: float) -> None:
    """(255 - mean absolute difference) / 255; differences aren't cut off at 8 bits."""
    assert steadiness(video(*levels)) == pytest.approx(expected)


def test_a_constant_error_changes_nothing() -> None:
    """One that comes and goes does, in a video that has the very same errors as another."""
    reference = video(10, 20, 30, 40)
    assert change_psnr(video(15, 25, 35, 45), reference) == PSNR_CAP
    flickering = change_psnr(video(15, 15, 35, 35), reference)
    assert flickering == pytest.approx(20 * np.log10(510 / 10))
