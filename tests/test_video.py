import io
from typing import get_args

import av
import numpy as np
import pytest
from PIL import Image

from warpcache_ray.errors import InvalidRequest
from warpcache_ray.media import MEDIA_TYPES, Format
from warpcache_ray.quality.fidelity import psnr
from warpcache_ray.video import encode, read_video, spritesheet, thumbnail, write_video

FORMATS = [form for form in get_args(Format) if form != "png"]
every_format = pytest.mark.parametrize("form", FORMATS)


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    """Nine 32×48 frames of moving colour waves."""
    t, y, x = np.ogrid[:9, :32, :48]
    waves = [np.sin((x + 2 * t) / 9 + phase) * np.cos(y / 11 + phase) for phase in range(3)]
    return (127 + 100 * np.stack(waves, -1)).astype(np.uint8)


def test_every_format_has_a_media_type():
    """The table and the type agree."""
    assert tuple(MEDIA_TYPES) == get_args(Format)


def test_an_image_is_one_frame(frames):
    """Of a png each pixel is kept; it has a thumbnail; several frames are refused."""
    data = encode(frames[:1], 8, "png")
    with Image.open(io.BytesIO(data)) as image:
        np.testing.assert_array_equal(np.asarray(image), frames[0])
    assert Image.open(io.BytesIO(thumbnail(data))).size == (48, 32)
    with pytest.raises(InvalidRequest, match="9 frames must be mp4, webm or gif"):
        encode(frames, 8, "png")


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


@pytest.fixture
def counting(tmp_path):
    """Writes a video whose n-th frame is grey of brightness 5n."""

    def write(form: str, count: int, height: int, width: int):
        path = tmp_path / f"v.{form}"
        shades = np.arange(count, dtype=np.uint8)[:, None, None, None] * 5
        write_video(path, np.broadcast_to(shades, (count, height, width, 3)), 8, form)
        return path.read_bytes()

    return write


@every_format
@pytest.mark.parametrize(("size", "small"), [((32, 48), (48, 32)), ((640, 64), (32, 320))])
def test_thumbnails(form, size, small, counting):
    """The first frame as WebP, as it is or, where it is large, made smaller in proportion."""
    image = Image.open(io.BytesIO(thumbnail(counting(form, 3, *size))))
    assert (image.format, image.size) == ("WEBP", small)
    assert np.asarray(image).mean() < 2


@every_format
@pytest.mark.parametrize(
    ("count", "grid", "shown"),
    [(1, (1, 1), [0]), (5, (4, 2), range(5)), (46, (4, 4), range(0, 46, 3))],
)
def test_spritesheets(form, count, grid, shown, counting):
    """Frames from the first to the last in even steps, row by row; what a row lacks is black."""
    sheet = Image.open(io.BytesIO(spritesheet(counting(form, count, 32, 48))))
    assert (sheet.format, sheet.size) == ("JPEG", (grid[0] * 48, grid[1] * 32))
    pixels = np.asarray(sheet).reshape(grid[1], 32, grid[0], 48, 3)
    told = pixels.mean((1, 3, 4)).flatten()
    wanted = np.zeros(told.size)
    wanted[: len(shown)] = np.array(shown) * 5
    assert told == pytest.approx(wanted, abs=4)


def test_large_frames_are_small_on_a_sheet(counting):
    """At most 160 pixels wide and high."""
    sheet = Image.open(io.BytesIO(spritesheet(counting("mp4", 2, 320, 64))))
    assert sheet.size == (2 * 32, 160)
