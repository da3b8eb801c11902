import numpy as np
import pytest

from warpcache_ray.quality.motion import motion, motion_ratio


def blinking(low: int, high: int) -> np.ndarray:
    frames = [np.full((4, 4, 3), value, np.uint8) for value in (low, high, low)]
    return np.stack(frames)


def test_motion_of_a_blink():
    """The mean absolute difference, with no wrapping around 255."""
    assert motion(blinking(50, 80)) == 30
    assert motion(blinking(250, 5)) == 245


@pytest.mark.parametrize("depth", [10, 30, 60])
def test_ratio(depth):
    """Half the blink is half the motion."""
    assert motion_ratio(blinking(50, 50 + depth), blinking(0, 30)) == pytest.approx(depth / 30)


def test_nothing_moves():
    """A still reference: equal if still too, else infinite."""
    assert motion_ratio(blinking(5, 5), blinking(9, 9)) == 1
    assert motion_ratio(blinking(5, 6), blinking(9, 9)) == float("inf")
    assert motion(blinking(1, 9)[:1]) == 0
