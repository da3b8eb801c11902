"""What `kubectl kustomize` makes of the overlays, for as much of kustomize as they use: resources, and JSON patches by
kind and name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonpatch
import yaml

DEPLOY = Path(__file__).parents[2] / "deploy"
OVERLAYS = sorted((DEPLOY / "kuberay" / "overlays").iterdir())

Resource = dict[str, Any]


def build(folder: Path) -> list[Resource]:
    """All resources of a kustomization."""
    document = yaml.safe_load((folder / "kustomization.yaml").read_text())
    assert document.keys() <= {"apiVersion", "kind", "resources", "patches"}
    found = [each for name in document["resources"] for each in _resources(folder / name)]
    for patch in document.get("patches", []):
        text = patch["patch"] if "patch" in patch else (folder / patch["path"]).read_text()
        found = [_patched(each, patch["target"], yaml.safe_load(text)) for each in found]
    return found


def _resources(place: Path) -> list[Resource]:
    return build(place) if place.is_dir() else list(yaml.safe_load_all(place.read_text()))


def _patched(resource: Resource, target: dict[str, str], operations: list[Any]) -> Resource:
    named = {"kind": resource["kind"], "name": resource["metadata"]["name"]}
    if not target.items() <= named.items():
        return resource
    patched: Resource = jsonpatch.apply_patch(resource, operations)
    return patched
