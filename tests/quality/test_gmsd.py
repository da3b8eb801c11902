import numpy as np
import pytest

from warpcache_ray.quality.gmsd import gmsd, gmsd_image

C = 170.0


def test_equal_videos():
    """No distance."""
    video = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3)).astype(np.uint8)
    assert gmsd(video, video) == pytest.approx(0)


def test_brightness_is_no_distance():
    """Only gradients count: two flat images are alike whatever their grey."""
    assert gmsd_image(np.full((8, 8), 10.0), np.full((8, 8), 200.0)) == 0


@pytest.mark.parametrize("slope", [1.0, 4.0])
def test_ramp_against_flat(slope):
    """A ramp of slope s has gradient 4s after halving, 2s in the two edge columns; a flat image has none."""
    ramp = np.tile(np.arange(20) * slope, (12, 1))
    inner, edge = (C / (g**2 + C) for g in (4 * slope, 2 * slope))
    # Two edge columns of ten.
    expected = np.sqrt(0.2 * 0.8) * abs(inner - edge)
    assert gmsd_image(ramp, np.zeros_like(ramp)) == pytest.approx(expected)
    assert gmsd_image(ramp.T, np.zeros_like(ramp.T)) == pytest.approx(expected)


def test_blur_grows_the_distance():
    """More lost detail, more distance."""
    sharp = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3)).astype(np.uint8)
    mixed = [np.uint8(sharp * (1 - a) + sharp.mean() * a) for a in (0.2, 0.6)]
    assert 0 < gmsd(mixed[0], sharp) < gmsd(mixed[1], sharp)
