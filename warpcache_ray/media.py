"""Formats of videos, and of images, which are videos of one frame; and their media types."""

from __future__ import annotations

from typing import Literal

Format = Literal["mp4", "webm", "gif", "png"]
MEDIA_TYPES: dict[Format, str] = {
    "mp4": "video/mp4",
    "webm": "video/webm",
    "gif": "image/gif",
    "png": "image/png",
}
