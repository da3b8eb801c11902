from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from warpcache_ray.cli import app
from warpcache_ray.doctor import findings
from warpcache_ray.engine.engine import Engine
from warpcache_ray.engine.events import Generation
from warpcache_ray.errors import InvalidRequest
from warpcache_ray.video import read_video

SHAPE = [
    "--height",
    "32",
    "--width",
    "32",
    "--num-frames",
    "9",
    "--num-inference-steps",
    "8",
    "--seed",
    "1",
]


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def test_generate_compares(folders: dict[str, Path], tmp_path: Path) -> None:
    """`--compare` writes both videos and tells PSNR, SSIM and the speedup."""
    out = tmp_path / "cat.gif"
    model = str(folders["wan"])
    told = run("generate", "a cat", "--model", model, "--out", str(out), "--compare", *SHAPE)
    assert told.exit_code == 0, told.output
    assert {p.name for p in tmp_path.iterdir()} == {"cat.gif", "cat-uncached.gif"}
    for word in ("PSNR", "SSIM", "as fast", "recomputed", "sha256"):
        assert word in told.output


def test_generate_begins_with_an_image(tmp_path: Path) -> None:
    """It's cropped to the video's shape; what is no image, and a model that takes none, are refused by name."""
    image, other = tmp_path / "first.png", tmp_path / "first.txt"
    Image.new("RGB", (90, 64), "red").save(image)
    other.write_text("no image")
    model = ["--model", "toyworld/wan-i2v", "--out", str(tmp_path / "red.mp4"), *SHAPE[:6]]
    model += ["--num-inference-steps", "2"]
    told = run("generate", "a red field", "--image", str(image), *model)
    assert told.exit_code == 0, told.output
    assert read_video(tmp_path / "red.mp4").shape == (9, 32, 32, 3)
    for given, said in (
        (["--image", str(other)], "not a whole image"),
        (["--image", str(tmp_path / "none.png")], "can't be read: No such file"),
        ([], "image is missing: WanImageToVideoPipeline makes videos from an image"),
    ):
        told = run("generate", "a red field", *model, *given)
        assert told.exit_code == 2
        assert said in " ".join(told.stderr.split())


def test_the_frame_rate_is_the_models_too(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of models whose motion depends on it, not of the file's alone."""
    asked: list[Generation] = []

    def generate(engine: Engine, generation: Generation, *_: object) -> None:
        asked.append(generation)
        raise InvalidRequest("enough")

    monkeypatch.setattr(Engine, "generate", generate)
    model = ["--model", str(folders["wan"]), "--out", str(tmp_path / "a.mp4")]
    run("generate", "a cat", *model, "--fps", "24", *SHAPE)
    assert [generation.fps for generation in asked] == [24]


def test_policy_with_parameters(folders: dict[str, Path], tmp_path: Path) -> None:
    """A policy can be given with its parameters, as YAML."""
    out = tmp_path / "cat.mp4"
    spec = "{name: interval, every: 4}"
    told = run(
        "generate",
        "a cat",
        "--model",
        str(folders["wan"]),
        "--out",
        str(out),
        "--policy",
        spec,
        *SHAPE,
    )
    assert told.exit_code == 0, told.output
    assert read_video(out).shape == (9, 32, 32, 3)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--policy", "worldcash"], "worldcache"),
        (["--policy", "none.json"], "none.json: can't be read"),
        (["--policy", "{name: interval, evry: 2}"], "every"),
        (["--out", "cat.avi"], "mp4"),
        (["--model", "no/such-model"], "model.path"),
    ],
)
def test_bad_options_end_with_a_message(options: list[str], said: str) -> None:
    """Exit status 2, and a message that says what is allowed."""
    told = run("generate", "a cat", *options)
    assert told.exit_code == 2
    assert said in told.stderr


def test_serve_refuses_a_bad_file(tmp_path: Path) -> None:
    """`warpcache serve` checks the file before it starts anything."""
    path = tmp_path / "bad.yaml"
    args = {"model": {"path": "toyworld/wan", "colour": "red"}}
    path.write_text(json.dumps({"applications": [{"args": args}]}))
    told = run("serve", str(path))
    assert told.exit_code == 2
    assert "model.colour" in told.stderr


def test_doctor() -> None:
    """Nothing that is needed is broken here, and each check has its line."""
    told = run("doctor")
    assert told.exit_code == 0, told.output
    for finding in findings():
        assert finding.check in told.output
        assert finding.state != "broken"
