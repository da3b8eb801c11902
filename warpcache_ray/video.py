"""Frames to video files."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from warpcache_ray.media import Format

_CODECS = {
    "mp4": ("libx264", {"crf": "16"}),
    "webm": ("libvpx-vp9", {"crf": "24", "b:v": "0", "cpu-used": "5"}),
}


def write_video(path: Path, frames: NDArray[np.uint8], fps: int, form: Format) -> None:
    """Encodes (T, H, W, 3) frames; H and W even for mp4 and webm. The file appears whole or not at all."""
    part = path.with_suffix(f".part.{form}")
    if form == "gif":
        images = [Image.fromarray(frame) for frame in frames]
        images[0].save(part, save_all=True, append_images=images[1:], duration=1000 / fps, loop=0)
    else:
        _encode(part, frames, fps, form)
    part.rename(path)


def _encode(path: Path, frames: NDArray[np.uint8], fps: int, form: Format) -> None:
    codec, options = _CODECS[form]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps, options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))


def read_video(path: Path) -> NDArray[np.uint8]:
    """All frames of a video file, (T, H, W, 3)."""
    with av.open(str(path)) as container:
        return np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])
