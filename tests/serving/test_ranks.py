"""A rank within the test: what becomes of the video that it makes."""

from __future__ import annotations

import io
import uuid
from pathlib import Path
from typing import Any

import av
import pytest
from PIL import Image
from test_artifacts import full_after

import warpcache_ray
from warpcache_ray.config import ModelConfig, ServiceConfig
from warpcache_ray.image import to_png
from warpcache_ray.serving.artifacts import Artifact, Artifacts
from warpcache_ray.serving.checkpoints import Checkpoints
from warpcache_ray.serving.ranks import Rank

REQUEST = {"prompt": "a cat", "seed": 1, "height": 32, "width": 32, "num_frames": 5}
REQUEST |= {"num_inference_steps": 2, "fps": 8, "output_format": "mp4"}


def rank_for(folder: Path, results: str) -> Rank:
    """A lone rank with its model loaded."""
    model = ModelConfig(str(folder), device="cpu", dtype="float32")
    rank = Rank(ServiceConfig(model, results=results, checkpoint_every=2), 0)
    rank.load(None)
    return rank


IMAGE_MODEL = Path(warpcache_ray.__file__).parent / "toyworld" / "wan-i2v"


def attempt_at(fence: int, **changes: Any) -> dict[str, Any]:
    """What a rank is told to make."""
    place = {"id": f"job_1#{fence}", "job_id": "job_1", "fence": fence, "epoch": 0}
    return {**place, "policy": {"name": "never"}, "request": {**REQUEST, **changes}}


@pytest.mark.parametrize("form", ["mp4", "webm", "gif"])
def test_a_video_in_storage(form: str, folders: dict[str, Path]) -> None:
    """It's kept under the attempt's own name wherever the configuration says, with what the record tells of it."""
    results = f"memory://{uuid.uuid4().hex}"
    rank = rank_for(folders["wan"], results)
    for fence in (1, 2):
        made, error = rank.generate(attempt_at(fence, output_format=form), None)
        assert error is None
        video = Artifact(made["path"])
        assert video.url == f"{results}/job_1/{fence}.{form}"
        assert video.size() == made["bytes"]
        with av.open(io.BytesIO(video.read())) as container:
            assert len(list(container.decode(video=0))) == made["num_frames"] == 5
    assert Artifacts(results).names("job_1") == [f"1.{form}", f"2.{form}"]


def test_a_full_disk_ends_the_attempt(folders: dict[str, Path], tmp_path: Path) -> None:
    """As one that may be made again; no half video is left, and the next one is well."""
    rank = rank_for(folders["wan"], str(tmp_path))
    with full_after(256):
        made, error = rank.generate(attempt_at(1), None)
    assert error is not None
    assert (made, error["code"], error["retryable"]) == ({}, "storage_failed", True)
    assert Artifacts(str(tmp_path)).names("job_1") == []
    made, error = rank.generate(attempt_at(2), None)
    assert (made["path"], error) == (str(tmp_path / "job_1" / "2.mp4"), None)


def test_an_attempt_that_goes_on_has_the_same_image(tmp_path: Path) -> None:
    """From the bytes that it is given again: the next attempt ends with the latents that one in a piece ends with,
    another image with others."""
    rank = rank_for(IMAGE_MODEL, str(tmp_path))
    image, other = (to_png(Image.new("RGB", (32, 32), color)) for color in ("red", "blue"))
    whole, error = rank.generate(attempt_at(1, num_inference_steps=4), None, image)
    assert error is None
    # The first attempt's last checkpoint is of its second step.
    checkpoint = Checkpoints(rank.config.checkpoints, rank.config.model.version).newest("job_1")
    rest, _ = rank.generate(attempt_at(2, num_inference_steps=4), checkpoint, image)
    assert (whole["resumed_at"], rest["resumed_at"]) == (0, 2)
    assert rest["latents_sha256"] == whole["latents_sha256"]
    another, _ = rank.generate(attempt_at(3, num_inference_steps=4), None, other)
    assert another["latents_sha256"] != whole["latents_sha256"]


def test_every_drift_is_told(folders: dict[str, Path], tmp_path: Path) -> None:
    """At site `layer` those of each block, as many as the account of the decisions has."""
    rank = rank_for(folders["wan"], str(tmp_path))
    attempt = attempt_at(1, num_inference_steps=4) | {"policy": {"name": "warpcache"}}
    made, error = rank.generate(attempt, None)
    assert error is None
    columns = made["decisions"]
    measured = [drift for site in columns.values() for drift in site["drift"] if drift is not None]
    told = rank.progress(attempt["id"])["drifts"]
    assert len(columns) > len({name.rpartition(".")[0] for name in columns})
    assert sorted(float(f"{drift:.4g}") for drift in told) == sorted(measured) != []


def test_an_attempt_without_its_image_fails(tmp_path: Path) -> None:
    """Before any step, for that reason."""
    made, error = rank_for(IMAGE_MODEL, str(tmp_path)).generate(attempt_at(1), None)
    assert error is not None
    assert (made, error["code"], error["param"]) == ({}, "invalid_request", "image")


def test_requests_in_turn_wear_their_own_loras(
    folders: dict[str, Path], loras: dict[str, str]
) -> None:
    """By the names of the configuration; the replica tells them, and what its weights take."""
    model = ModelConfig(str(folders["wan"]), device="cpu", dtype="float32", loras=loras)
    rank = Rank(ServiceConfig(model, results=f"memory://{uuid.uuid4().hex}"), 0)
    info = rank.load(None)
    assert info["loras"] == ("clay", "ink")
    assert info["load_seconds"] > 0
    plain = rank_for(folders["wan"], "memory://plain").load(None)["weight_bytes"]
    assert plain < info["weight_bytes"] < 1.5 * plain
    made = []
    for worn in ({}, {"lora": "ink"}, {"lora": "clay", "lora_scale": 0.5}, {"lora": "ink"}, {}):
        published, error = rank.generate(attempt_at(1, **worn), None)
        assert error is None
        made.append(published["latents_sha256"])
    assert made[0] == made[4]
    assert made[1] == made[3]
    assert len(set(made)) == 3
