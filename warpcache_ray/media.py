"""Video formats, and their media types."""

from __future__ import annotations

from typing import Literal

Format = Literal["mp4", "webm", "gif"]
MEDIA_TYPES: dict[Format, str] = {"mp4": "video/mp4", "webm": "video/webm", "gif": "image/gif"}
