"""Videos beside their references, by measures that need no judge."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from warpcache_ray.errors import InvalidRequest
from warpcache_ray.evaluation.kept import Kept, Measured, file_digest
from warpcache_ray.media import MEDIA_TYPES
from warpcache_ray.quality.fidelity import psnr, ssim
from warpcache_ray.quality.gmsd import gmsd
from warpcache_ray.quality.motion import motion_ratio
from warpcache_ray.quality.temporal import change_psnr, steadiness
from warpcache_ray.video import read_video

Video = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Measure:
    """`better` is what a good value is: high, low, or near 1."""

    title: str
    better: str
    of: Callable[[Video, Video], float]


MEASURES: Mapping[str, Measure] = {
    "psnr": Measure("PSNR (dB)", "high", psnr),
    "ssim": Measure("SSIM", "high", ssim),
    "gmsd": Measure("GMSD", "low", gmsd),
    "motion_ratio": Measure("motion, of the reference's", "1", motion_ratio),
    "change_psnr": Measure("temporal consistency: PSNR of changes (dB)", "high", change_psnr),
    "steadiness_ratio": Measure(
        "temporal steadiness, of the reference's",
        "1",
        lambda video, reference: steadiness(video) / max(steadiness(reference), 1e-6),
    ),
}


def compare(video: Video, reference: Video) -> Measured:
    """All measures of two videos of one shape (T, H, W, 3)."""
    return {name: measure.of(video, reference) for name, measure in MEASURES.items()}


def videos_in(folder: Path, field: str) -> dict[str, Path]:
    """The video files of a folder, by their names without endings.

    Raises:
        InvalidRequest: it isn't there, or has none.
    """
    endings = {f".{form}" for form in MEDIA_TYPES if form != "png"}
    there = sorted(folder.iterdir()) if folder.is_dir() else []
    found = {file.stem: file for file in there if file.suffix in endings}
    if not found:
        allowed = ", ".join(sorted(endings))
        raise InvalidRequest(f"{field} = {str(folder)!r}: a folder with videos ({allowed})", field)
    return found


def frames_of(file: Path) -> Video:
    """All frames of a video file, (T, H, W, 3).

    Raises:
        InvalidRequest: it holds none that can be read.
    """
    try:
        return read_video(file)
    except (OSError, ValueError, IndexError) as error:
        said = f"videos = {str(file)!r} can't be read: {error}"
        raise InvalidRequest(said, "videos") from error


def pairs_in(videos: Path, references: Path) -> list[tuple[str, Path, Path]]:
    """Name, video and reference of all that are called the same.

    Raises:
        InvalidRequest: a video has no reference, or a reference no video; names the first.
    """
    ours, theirs = videos_in(videos, "videos"), videos_in(references, "references")
    odd = sorted(ours.keys() ^ theirs.keys())
    if odd:
        where, field = (references, "references") if odd[0] in ours else (videos, "videos")
        said = f"{field} = {str(where)!r}: has no video called {odd[0]!r}, the other folder has"
        raise InvalidRequest(said, field)
    return [(name, ours[name], theirs[name]) for name in ours]


def compare_files(video: Path, reference: Path, kept: Kept) -> Measured:
    """All measures of two files.

    Raises:
        InvalidRequest: they differ in size or length.
    """

    def measure() -> Measured:
        one, other = frames_of(video), frames_of(reference)
        if one.shape != other.shape:
            said = f"videos = {str(video)!r}: (frames, rows, columns, 3) = {one.shape}, its reference has {other.shape}"
            raise InvalidRequest(said, "videos")
        return compare(one, other)

    return kept.get({"pair": file_digest(video, reference), "measures": list(MEASURES)}, measure)


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Mean and worst of each measure over all pairs."""
    found = {}
    for name, measure in MEASURES.items():
        values = [float(row[name]) for row in rows]
        found[name] = {"mean": float(np.mean(values)), "worst": _worst(values, measure.better)}
    return found


def _worst(values: Sequence[float], better: str) -> float:
    if better == "1":
        return max(values, key=lambda value: abs(value - 1))
    return min(values) if better == "high" else max(values)
