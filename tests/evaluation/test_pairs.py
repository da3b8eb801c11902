"""Which files of a folder are videos."""

from __future__ import annotations

from pathlib import Path

import pytest

from warpcache_ray.errors import InvalidRequest
from warpcache_ray.evaluation.pairs import videos_in


def test_images_are_no_videos(tmp_path: Path) -> None:
    """Those beside them are left alone; alone they are refused, and the endings that count are named."""
    (tmp_path / "a.png").touch()
    with pytest.raises(InvalidRequest, match=r"\(\.gif, \.mp4, \.webm\)"):
        videos_in(tmp_path, "videos")
    (tmp_path / "a.mp4").touch()
    assert videos_in(tmp_path, "videos") == {"a": tmp_path / "a.mp4"}
