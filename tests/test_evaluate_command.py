"""`warpcache evaluate` as users call it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from warpcache_ray.cli import app
from warpcache_ray.engine.engine import Engine
from warpcache_ray.evaluation import suite
from warpcache_ray.evaluation.pairs import MEASURES
from warpcache_ray.video import read_video, write_video

SIZE = ("--height", "32", "--width", "32", "--num-frames", "5", "--num-inference-steps", "4")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["evaluate", *map(str, arguments)])


def evaluated(out: Path, *arguments: object) -> dict[str, Any]:
    told = run("--out", out, *arguments)
    assert told.exit_code == 0, told.output
    report: dict[str, Any] = json.loads(out.with_suffix(".json").read_text())
    assert out.with_suffix(".md").read_text().strip() in told.output
    return report


def noise(seed: int, size: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (4, size, size, 3), np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two videos: noise, and something that stands still."""
    made = tmp_path / "videos"
    made.mkdir()
    write_video(made / "a cat-0.mp4", noise(0), 8, "mp4")
    write_video(made / "a field-0.mp4", np.repeat(noise(1)[:1], 4, 0), 8, "mp4")
    return made


def test_pairs_of_two_folders(folder: Path, tmp_path: Path) -> None:
    """A video is like itself in every measure, and its worst is told beside the mean."""
    other = tmp_path / "references"
    other.mkdir()
    for file in folder.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    write_video(other / "a cat-0.mp4", noise(7), 8, "mp4")
    report = evaluated(tmp_path / "report", "--videos", folder, "--references", other)
    same = report["videos"]["a field-0"]
    assert (same["psnr"], same["ssim"], same["gmsd"], same["change_psnr"]) == (99, 1, 0, 99)
    assert set(report["values"]) == set(MEASURES)
    psnr = report["values"]["psnr"]
    assert psnr["worst"] == report["videos"]["a cat-0"]["psnr"] < 20 < psnr["mean"]
    assert report["versions"]["scikit-image"]


def test_pairs_of_a_model_go_on_where_they_were(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cached beside uncached; interrupted after one prompt of two, only the other one is made."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat\na field\n")
    asked = ("--model", folders["wan"], "--prompts", prompts, *SIZE)
    asked += ("--policy", "{name: interval, every: 2}")
    made: list[str] = []
    generate = Engine.generate

    def counted(self: Engine, generation: Any, *rest: Any, **more: Any) -> Any:
        made.append(generation.prompt)
        return generate(self, generation, *rest, **more)

    monkeypatch.setattr(Engine, "generate", counted)
    evaluated(tmp_path / "report", *asked, "--count", 1)
    report = evaluated(tmp_path / "report", *asked)
    assert made == ["a cat", "a cat", "a field", "a field"]
    assert report["settings"]["policy"]["name"] == "interval"
    assert 0 < report["values"]["share of blocks"] < 1
    assert 0 < report["values"]["psnr"]["mean"] < 99
    for kind in ("cached", "uncached"):
        assert read_video(tmp_path / "report-videos" / kind / "001.mp4").shape == (5, 32, 32, 3)
    evaluated(tmp_path / "report", *asked, "--policy", "never")
    assert len(made) == 8


def test_vbench_looks_at_each_video_in_its_dimensions(folder: Path, tmp_path: Path) -> None:
    """What needs no judge is computed, other programs' results are taken in, all else is listed with its needs."""
    prompts, scores = tmp_path / "info.json", tmp_path / "a_eval_results.json"
    entries = [
        {"prompt_en": "a cat", "dimension": ["human_action"]},
        {"prompt_en": "a field", "dimension": ["temporal_flickering"]},
        {"prompt_en": "a lake", "dimension": ["temporal_flickering"]},
    ]
    prompts.write_text(json.dumps(entries))
    scores.write_text(json.dumps({"imaging_quality": [0.6, []]}))
    report = evaluated(
        *(tmp_path / "report", "--protocol", "vbench", "--videos", folder, "--prompts", prompts),
        *("--samples", 1, "--scores", scores),
    )
    assert report["values"]["temporal_flickering"] == pytest.approx(1, abs=0.01)
    assert report["values"]["imaging_quality"] == 0.6
    assert report["videos"]["a cat-0"] == {}
    assert report["scores"] == {"quality": None, "semantic": None, "total": None}
    assert "facebook/dino-vitb16" in report["missing"]["subject_consistency"]
    assert report["missing"]["videos"].startswith("1 of the protocol's, such as 'a lake-0'")
    assert len(report["missing"]) == 16 - 2 + 1
    assert "7975661" in report["source"]


def test_a_suites_videos_are_made_once(folders: dict[str, Path], tmp_path: Path) -> None:
    """Called as PAI-Bench has them: by video and seed; those that are there are left alone, and taken for no other
    policy's."""
    prompts, videos = tmp_path / "info.json", tmp_path / "made"
    prompts.write_text(json.dumps([{"video_id": "av_1", "prompt_en": "a road"}]))
    asked = ("--protocol", "pai-bench", "--model", folders["wan"], "--prompts", prompts, *SIZE)
    asked += ("--videos", videos, "--samples", 2, "--policy", "never")
    report = evaluated(tmp_path / "report", *asked)
    files = sorted(videos.iterdir())
    assert [file.name for file in files] == ["av_1__0.mp4", "av_1__1.mp4", "made.json"]
    assert files[0].read_bytes() != files[1].read_bytes()
    assert "Qwen2.5-VL-72B" in report["missing"]["domain_score"]
    before = [file.stat().st_mtime_ns for file in files]
    evaluated(tmp_path / "report", *asked)
    assert [file.stat().st_mtime_ns for file in files] == before
    told = run("--out", tmp_path / "report", *asked[:-1], "worldcache")
    assert told.exit_code == 2
    assert "weren't made with these settings" in " ".join(told.output.split())


def test_measured_videos_are_not_read_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless they have changed."""
    asked = ("--protocol", "vbench", "--videos", folder)
    first = evaluated(tmp_path / "report", *asked)
    read: list[str] = []
    monkeypatch.setattr(suite, "frames_of", lambda file: read.append(file.stem) or noise(2))
    assert evaluated(tmp_path / "report", *asked)["videos"] == first["videos"]
    write_video(folder / "a cat-0.mp4", noise(3), 8, "mp4")
    evaluated(tmp_path / "report", *asked)
    assert read == ["a cat-0"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "pairs need videos and references, or model and prompts"),
        (("--videos", "VIDEOS"), "pairs need videos and references"),
        (("--model", "toyworld/wan"), "prompts is missing"),
        (("--model", "x", "--prompts", "x", "--videos", "VIDEOS"), "makes both videos of a pair"),
        (("--protocol", "vbench"), "videos is missing"),
        (("--protocol", "vbench", "--videos", "nowhere"), "videos = 'nowhere': a folder with vid"),
        (("--protocol", "vbench", "--videos", "VIDEOS", "--prompts", "FILE"), "'prompt_en'"),
        (("--protocol", "vbench", "--videos", "VIDEOS", "--scores", "FILE"), "scores = "),
        (("--videos", "VIDEOS", "--references", "OTHER"), "has no video called 'a field-0'"),
        (("--videos", "OTHER", "--references", "BROKEN"), "a cat-0.mp4' can't be read"),
        (("--videos", "VIDEOS", "--references", "VIDEOS", "--samples", 2), "samples = 2: pairs"),
        (("--protocol", "vbench", "--videos", "VIDEOS", "--references", "OTHER"), "references ="),
        (("--videos", "OTHER", "--references", "OTHER2"), "its reference has (4, 48, 48, 3)"),
    ],
)
def test_what_cannot_be_evaluated_is_named(
    folder: Path, tmp_path: Path, arguments: tuple[Any, ...], said: str
) -> None:
    """The field, its value, and what is allowed."""
    places = {name: tmp_path / name for name in ("OTHER", "OTHER2", "FILE")} | {"VIDEOS": folder}
    places["FILE"] = tmp_path / "file.json"
    places["FILE"].write_text('[{"video_id": "a"}]')
    places["BROKEN"] = tmp_path / "broken"
    places["BROKEN"].mkdir()
    (places["BROKEN"] / "a cat-0.mp4").write_bytes(b"no video")
    for name, size in (("OTHER", 32), ("OTHER2", 48)):
        places[name].mkdir()
        write_video(places[name] / "a cat-0.mp4", noise(1, size), 8, "mp4")
    told = run("--out", tmp_path / "report", *(places.get(a, a) for a in arguments))
    assert told.exit_code == 2
    assert said in " ".join(told.output.split())
