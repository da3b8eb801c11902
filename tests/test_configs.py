from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from warpcache_ray.config import load_application
from warpcache_ray.errors import InvalidConfig
from warpcache_ray.serving.preflight import check_devices
from warpcache_ray.serving.replica import bundles

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_file_is_valid(path: Path) -> None:
    """Serve accepts the file, we accept its `args`, and it listens on the loopback interface alone."""
    schema = ServeDeploySchema.model_validate(yaml.safe_load(path.read_text()))
    assert schema.http_options.host == "127.0.0.1"
    assert schema.applications[0].import_path == "warpcache_ray.serving.app:build"
    config = load_application(path)
    assert config.name == path.stem
    assert len(bundles(config)) == 1 + config.parallel.world_size


def test_the_four_are_there() -> None:
    """The demo, HunyuanVideo, Wan and Cosmos."""
    assert {p.stem for p in CONFIGS} >= {"toyworld", "hunyuan", "wan", "cosmos"}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_the_image_listens_everywhere_and_wants_keys(path: Path, tmp_path: Path) -> None:
    """What the Dockerfile makes of each file: out of reach of the loopback interface, with keys that are mounted."""
    dockerfile = (path.parents[1] / "deploy" / "Dockerfile").read_text().replace("\\\n", "")
    (edit,) = re.findall(r"^RUN (sed .*)$", dockerfile, re.MULTILINE)
    shutil.copytree(path.parent, tmp_path / "configs")
    subprocess.run(edit, shell=True, cwd=tmp_path, check=True)
    document = yaml.safe_load((tmp_path / "configs" / path.name).read_text())
    assert document["http_options"]["host"] == "0.0.0.0"
    assert document["applications"][0]["args"]["access"] == {
        "keys_file": "/home/warpcache/keys.yaml"
    }


def test_gpu_configs_say_what_they_need() -> None:
    """On a machine without GPUs the message names the field, the need and what is there."""
    path = next(p for p in CONFIGS if p.stem == "hunyuan")
    with pytest.raises(InvalidConfig, match=r"ulysses=4, ring=2.* needs 8 GPUs.* has 0"):
        check_devices(load_application(path), {"CPU": 2.0})
