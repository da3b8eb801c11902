"""deploy/compose.yaml and what goes on top of it: valid by the published schema, of one mind with the Dockerfile."""

from __future__ import annotations

import json
import re
from pathlib import Path

import jsonschema
import pytest
import yaml
from overlays import DEPLOY

FILES = sorted(DEPLOY.glob("compose*.yaml"))
SCHEMA = json.loads((Path(__file__).parent / "schemas" / "compose-spec.json").read_text())


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_each_file_is_valid(path: Path) -> None:
    jsonschema.Draft7Validator(SCHEMA).validate(yaml.safe_load(path.read_text()))


def test_it_runs_what_the_image_has() -> None:
    """The paths, the port and the configurations are the Dockerfile's; the images have its two names."""
    dockerfile = (DEPLOY / "Dockerfile").read_text()
    service = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["warpcache"]
    places = [volume.partition(":")[2] for volume in service["volumes"]]
    install = re.search(r"install -d .*", dockerfile)
    assert install
    assert set(places) < set(install.group(0).split())
    assert [secret["target"] for secret in service["secrets"]] == ["/home/warpcache/keys.yaml"]
    assert "keys_file: /home/warpcache/keys.yaml" in dockerfile
    assert service["ports"] == ["127.0.0.1:8000:8000"]
    assert "EXPOSE 8000" in dockerfile
    for default in ("toyworld", "wan"):
        assert (DEPLOY.parent / "configs" / f"{default}.yaml").is_file()
    images = set(re.findall(r"-t (warpcache-ray:\w+)", dockerfile))
    gpu = yaml.safe_load((DEPLOY / "compose.gpu.yaml").read_text())["services"]["warpcache"]
    assert {service["image"], gpu["image"]} == images
