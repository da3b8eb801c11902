"""`serve run` of the families' configurations, their models swapped for tiny ones and their GPUs for two CPUs."""

from __future__ import annotations

import io
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import cosmos_guardrail
import httpx
import numpy as np
import pytest
import yaml
from PIL import Image
from tiny import build

from warpcache_ray.demo import generate, service
from warpcache_ray.engine.engine import Engine
from warpcache_ray.engine.events import Generation, Result
from warpcache_ray.policy_spec import parse_policy
from warpcache_ray.video import read_video

pytestmark = pytest.mark.slow

CONFIGS = Path(__file__).parents[2] / "configs"
SIZE = {"height": 32, "width": 32, "num_frames": 9, "num_inference_steps": 8}
AUTO = {"name": "auto", "max_calls": 4}


@pytest.fixture
def guardrail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for NVIDIA's, which is gated, as an installed distribution: the ranks are processes of their own."""
    installed = tmp_path / "installed"
    described = installed / "cosmos_guardrail-0.dist-info" / "METADATA"
    described.parent.mkdir(parents=True)
    described.write_text("Metadata-Version: 2.1\nName: cosmos_guardrail\nVersion: 0\n")
    shutil.copy(cosmos_guardrail.__file__, installed)
    known = os.environ.get("PYTHONPATH", "")
    monkeypatch.setenv("PYTHONPATH", f"{installed}{os.pathsep}{known}")


@pytest.fixture
def served(tmp_path: Path, free_port: int) -> Callable[..., AbstractContextManager[httpx.Client]]:
    """`served(name, folder, size)`: a client of the configuration's application."""

    @contextmanager
    def run(
        name: str, folder: Path, size: dict[str, int], parallel: dict[str, int] | None = None
    ) -> Iterator[httpx.Client]:
        document = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
        document["http_options"]["port"] = free_port
        args = document["applications"][0]["args"]
        args["model"] |= {"path": str(folder), "device": "cpu", "dtype": "float32"}
        form = args["model"]["defaults"].get("output_format", "mp4")
        defaults = {**size, "fps": 8, "output_format": form}
        args["model"] |= {"revision": None, "defaults": defaults}
        args |= {"parallel": parallel or {}, "policy": AUTO, "results": str(tmp_path / "results")}
        file = tmp_path / f"{name}.yaml"
        file.write_text(yaml.safe_dump(document))
        with service(file, f"http://127.0.0.1:{free_port}") as client:
            yield client

    return run


@pytest.mark.usefixtures("guardrail")
@pytest.mark.parametrize(
    ("name", "parallel"), [("cosmos", {"ulysses": 2}), ("wan", {"cfg": 2})], ids=["cosmos", "wan"]
)
def test_a_family_is_served_by_two_ranks_with_auto_on(
    served: Callable[..., Any],
    folders: dict[str, Path],
    tmp_path: Path,
    name: str,
    parallel: dict[str, int],
) -> None:
    """They skip the steps that one engine skips, and make the video that was asked for."""
    with served(name, folders[name], SIZE, parallel=parallel) as client:
        asked = {"prompt": "a cat", "seed": 3}
        record, video = generate(client, asked, lambda _: None)
        told = client.get("/models").json()
    assert record["status"] == "succeeded"
    assert record["policy"]["name"] == "auto"
    alone = Engine.load(folders[name]).generate(Generation("a cat", 3, **SIZE), parse_policy(AUTO))
    counted = {name: record["cache"][name] for name in ("recomputed", "reused", "warped")}
    summary = alone.stats.summary()
    assert counted == {name: summary[name] for name in counted}
    assert counted["recomputed"] < sum(counted.values())
    (tmp_path / "video.mp4").write_bytes(video)
    assert read_video(tmp_path / "video.mp4").shape == (9, 32, 32, 3)
    assert told["load_seconds"] > 0
    assert told["weight_bytes"] > 0


def test_a_pipeline_without_a_callback_is_served(
    served: Callable[..., Any], tmp_path: Path
) -> None:
    """A running job is cancelled at a step, and the next one makes what one engine makes."""
    build("hunyuan15").save_pretrained(tmp_path / "model")
    with served("hunyuan15", tmp_path / "model", SIZE) as client:
        asked = {"prompt": "a cat", "seed": 3}
        endless = {**asked, "num_inference_steps": 100, "policy": "never"}
        job = client.post("/generate", json=endless).json()
        while not client.get(f"/jobs/{job['id']}").json()["step"]:
            time.sleep(0.05)
        client.delete(f"/jobs/{job['id']}")
        record, _ = generate(client, asked, lambda _: None)
        ended = client.get(f"/jobs/{job['id']}").json()
    assert ended["status"] == "cancelled"
    assert 0 < ended["step"] < 100
    alone = _alone(tmp_path / "model", SIZE)
    assert record["result"]["latents_sha256"] == alone.latents_sha256
    assert record["cache"]["recomputed"] == alone.stats.summary()["recomputed"] == 8


def test_images_are_served(served: Callable[..., Any], tmp_path: Path) -> None:
    """As PNG, without a word of the request; what is for videos is refused."""
    build("flux").save_pretrained(tmp_path / "model")
    size = {name: value for name, value in SIZE.items() if name != "num_frames"}
    with served("flux", tmp_path / "model", size) as client:
        record, made = generate(client, {"prompt": "a cat", "seed": 3}, lambda _: None)
        shown, video = client.get(record["video"]), record["id"].replace("job_", "video_")
        thumbnail = client.get(f"/v1/videos/{video}/content?variant=thumbnail")
        refused = client.post("/generate", json={"prompt": "a cat", "num_frames": 9})
    assert shown.headers["content-type"] == "image/png"
    assert record["result"]["num_frames"] == 1
    with Image.open(io.BytesIO(made)) as image:
        alone = _alone(tmp_path / "model", size)
        np.testing.assert_array_equal(np.asarray(image), alone.frames[0])
    assert thumbnail.headers["content-type"] == "image/webp"
    assert (refused.status_code, refused.json()["error"]["param"]) == (422, "num_frames")


def _alone(folder: Path, size: dict[str, int]) -> Result:
    return Engine.load(folder).generate(Generation("a cat", 3, **size), parse_policy(AUTO))
