from typing import get_args

import av
import numpy as np
import pytest
from PIL import Image

from warpcache_ray.media import MEDIA_TYPES, Format
from warpcache_ray.quality.fidelity import psnr
from warpcache_ray.video import read_video, write_video

FORMATS = get_args(Format)
every_format = pytest.mark.parametrize("form", FORMATS)


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    """Nine 32×48 frames of moving colour waves."""
    t, y, x = np.ogrid[:9, :32, :48]
    waves = [np.sin((x + 2 * t) / 9 + phase) * np.cos(y / 11 + phase) for phase in range(3)]
    return (127 + 100 * np.stack(waves, -1)).astype(np.uint8)


def test_every_format_has_a_media_type():
    """The table and the type agree."""
    assert tuple(MEDIA_TYPES) == FORMATS


@every_format
def test_round_trip(form, frames, tmp_path):
    """All frames come back in size and near in colour, and nothing but the file is left."""
    path = tmp_path / f"job.1.{form}"
    write_video(path, frames, 8, form)
    video = read_video(path)
    assert video.shape == frames.shape
    assert psnr(video, frames) > 32
    assert list(tmp_path.iterdir()) == [path]


@every_format
def test_speed(form, frames, tmp_path):
    """Frames last 1/fps seconds (in a GIF to the hundredth of a second)."""
    path = tmp_path / f"v.{form}"
    write_video(path, frames, 10, form)
    with av.open(str(path)) as container:
        assert container.streams.video[0].average_rate == 10


@pytest.mark.parametrize("form", ["mp4", "webm"])
def test_still_frames_are_kept(form, frames, tmp_path):
    """A video in which nothing moves has as many frames as any other."""
    still = np.repeat(frames[:1], 9, axis=0)
    write_video(tmp_path / f"v.{form}", still, 8, form)
    assert read_video(tmp_path / f"v.{form}").shape == still.shape


def test_a_still_gif_lasts_as_long(frames, tmp_path):
    """A GIF holds equal frames once, for as long as all of them."""
    write_video(tmp_path / "v.gif", np.repeat(frames[:1], 9, axis=0), 8, "gif")
    with Image.open(tmp_path / "v.gif") as image:
        assert image.info["duration"] == pytest.approx(9 * 1000 / 8, abs=45)


@every_format
def test_failures_leave_no_file(form, tmp_path):
    """Frames that can't be encoded give an error, no video and no part of one."""
    with pytest.raises(Exception, match=r".+"):
        write_video(tmp_path / f"v.{form}", np.zeros((2, 31, 47, 5), np.uint8), 8, form)
    assert list(tmp_path.iterdir()) == []
