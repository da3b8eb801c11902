"""Frames to video files, and still previews of those."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from warpcache_ray.errors import InvalidRequest
from warpcache_ray.media import Format

_CODECS = {
    "mp4": ("libx264", {"crf": "16"}),
    "webm": ("libvpx-vp9", {"crf": "24", "b:v": "0", "cpu-used": "5"}),
}

THUMBNAIL_SIDE = 320
SPRITE_SIDE = 160
SPRITES = 16
COLUMNS = 4


def encode(frames: NDArray[np.uint8], fps: int, form: Format) -> bytes:
    """(T, H, W, 3) frames as a file's bytes; H and W even for mp4 and webm.

    Raises:
        InvalidRequest: several frames were to become a png.
    """
    data = io.BytesIO()
    if form == "png":
        if len(frames) > 1:
            said = (
                f"output_format = 'png': a video of {len(frames)} frames must be mp4, webm or gif"
            )
            raise InvalidRequest(said, "output_format")
        return _file(Image.fromarray(frames[0]), "PNG")
    if form == "gif":
        images = [Image.fromarray(frame) for frame in frames]
        rest, duration = images[1:], 1000 / fps
        images[0].save(data, "GIF", save_all=True, append_images=rest, duration=duration, loop=0)
        return data.getvalue()
    codec, options = _CODECS[form]
    with av.open(data, "w", format=form) as container:
        stream = container.add_stream(codec, rate=fps, options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    return data.getvalue()


def write_video(path: Path, frames: NDArray[np.uint8], fps: int, form: Format) -> None:
    """The same as a file. It appears whole or not at all."""
    part = path.with_suffix(f".part.{form}")
    part.write_bytes(encode(frames, fps, form))
    part.rename(path)


def read_video(path: Path) -> NDArray[np.uint8]:
    """All frames of a video file, (T, H, W, 3)."""
    with av.open(str(path)) as container:
        return np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])


def some_frames(video: bytes, count: int, most: int) -> Iterator[NDArray[np.uint8]]:
    """Up to `most` of the `count` frames of a video file, evenly spaced from the first to the last, (H, W, 3) each."""
    wanted = set(_spread(count, most))
    with av.open(io.BytesIO(video)) as container:
        for index, frame in enumerate(container.decode(video=0)):
            if index in wanted:
                yield frame.to_ndarray(format="rgb24")


def thumbnail(video: bytes) -> bytes:
    """A video file's first frame as WebP, at most `THUMBNAIL_SIDE` pixels wide and high."""
    return _file(next(_small(video, THUMBNAIL_SIDE)), "WEBP")


def spritesheet(video: bytes) -> bytes:
    """Up to `SPRITES` frames, evenly spaced from the first to the last, as one JPEG: row by row, `COLUMNS` a row."""
    frames = list(_small(video, SPRITE_SIDE))
    chosen = [frames[i] for i in _spread(len(frames), SPRITES)]
    count = len(chosen)
    width, height = frames[0].size
    sheet = Image.new("RGB", (min(count, COLUMNS) * width, -(-count // COLUMNS) * height))
    for place, frame in enumerate(chosen):
        sheet.paste(frame, (place % COLUMNS * width, place // COLUMNS * height))
    return _file(sheet, "JPEG")


def _spread(count: int, most: int) -> list[int]:
    chosen: list[int] = np.linspace(0, count - 1, min(count, most)).round().astype(int).tolist()
    return chosen


def _small(video: bytes, side: int) -> Iterator[Image.Image]:
    # One by one: all frames of a large video at once would take hundreds of megabytes.
    with av.open(io.BytesIO(video)) as container:
        for frame in container.decode(video=0):
            image: Image.Image = frame.to_image()
            image.thumbnail((side, side))
            yield image


def _file(image: Image.Image, form: str) -> bytes:
    data = io.BytesIO()
    image.save(data, form)
    return data.getvalue()
