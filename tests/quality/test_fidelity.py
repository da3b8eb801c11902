import numpy as np
import pytest

from warpcache_ray.quality.fidelity import PSNR_CAP, psnr, ssim


@pytest.fixture
def video() -> np.ndarray:
    return np.random.default_rng(0).integers(40, 200, (3, 16, 16, 3)).astype(np.uint8)


def test_equal_videos(video):
    """The cap, and an SSIM of 1."""
    assert psnr(video, video) == PSNR_CAP
    assert ssim(video, video) == pytest.approx(1)


@pytest.mark.parametrize("step", [1, 5, 30])
def test_psnr_of_a_constant_difference(step, video):
    """20 log10(255 / d), either way round and without wrapping around 255."""
    expected = 20 * np.log10(255 / step)
    assert psnr(video + step, video) == pytest.approx(expected)
    assert psnr(video, video + step) == pytest.approx(expected)


def test_psnr_is_of_all_frames(video):
    """An error in one of three frames has a third of its mean square."""
    changed = video.copy()
    changed[1] += 6
    assert psnr(changed, video) == pytest.approx(20 * np.log10(255 / 6) + 10 * np.log10(3))


def test_psnr_stays_below_its_cap():
    """One changed value among millions isn't better than equality."""
    black = np.zeros((40, 256, 256, 3), np.uint8)
    changed = black.copy()
    changed[0, 0, 0, 0] = 1
    assert psnr(changed, black) == PSNR_CAP


def test_ssim_is_the_mean_of_the_frames(video):
    """More noise is less like the reference; one bad frame of three costs a third."""
    noise = np.random.default_rng(1).integers(-30, 30, video.shape)
    noisy, noisier = ((video + k * noise).clip(0, 255).astype(np.uint8) for k in (0.5, 1.0))
    assert 0 < ssim(noisier, video) < ssim(noisy, video) < 1
    mixed = np.concatenate((video[:2], noisy[2:]))
    assert ssim(mixed, video) == pytest.approx((2 + ssim(noisy[2:], video[2:])) / 3)


@pytest.mark.parametrize("measure", [psnr, ssim])
def test_lengths_must_agree(measure, video):
    """Videos of different lengths aren't compared."""
    with pytest.raises(ValueError, match=r".+"):
        measure(video[:2], video)
