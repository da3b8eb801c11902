"""`serve run` of the families' configurations, their models swapped for tiny ones and their GPUs for two CPUs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import cosmos_guardrail
import httpx
import pytest
import yaml

from warpcache_ray.demo import generate, service
from warpcache_ray.engine.engine import Engine
from warpcache_ray.engine.events import Generation
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
def served(
    folders: dict[str, Path], tmp_path: Path, free_port: int
) -> Callable[..., AbstractContextManager[httpx.Client]]:
    """`served(name, parallel)`: a client of the configuration's application."""

    @contextmanager
    def run(name: str, parallel: dict[str, int]) -> Iterator[httpx.Client]:
        document = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
        document["http_options"]["port"] = free_port
        args = document["applications"][0]["args"]
        args["model"] |= {"path": str(folders[name]), "device": "cpu", "dtype": "float32"}
        args["model"] |= {"revision": None, "defaults": {**SIZE, "fps": 8}}
        args |= {"parallel": parallel, "policy": AUTO, "results": str(tmp_path / "results")}
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
    with served(name, parallel) as client:
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
