"""What is compared: methods, each with the settings it is tried at."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from warpcache_ray.bench.rivals import KINDS
from warpcache_ray.errors import InvalidConfig


@dataclass(frozen=True)
class Setting:
    """One way to run a method: `kind` says by what means, `options` with which parameters."""

    method: str
    kind: str
    label: str
    options: Mapping[str, Any]

    @property
    def key(self) -> str:
        """Digest of what the setting does; its method and label are only names."""
        return digest([self.kind, self.options])


def digest(content: Any) -> str:
    """Short hex SHA-256 of JSON-like content."""
    text = json.dumps(content, sort_keys=True, default=list)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_contenders(path: Path) -> list[Setting]:
    """The settings of a contenders file.

    It maps method names to `{kind, fixed, settings}`: each entry of `settings` (a mapping, or `{file: PATH}` with a
    mapping in JSON or YAML, relative to the contenders file) is laid over `fixed`.

    Raises:
        InvalidConfig: an unknown kind or key, or a file that isn't there.
    """
    found: list[Setting] = []
    for method, given in _mapping(path).items():
        unknown = set(given) - {"kind", "fixed", "settings"}
        if unknown or given.get("kind") not in KINDS or not given.get("settings"):
            raise InvalidConfig(
                f"{path}: {method!r} needs a kind ({', '.join(KINDS)}) and a list of settings; has {given}",
                method,
            )
        for own in given["settings"]:
            options = {**given.get("fixed", {}), **_read(own, path.parent)}
            found.append(Setting(method, given["kind"], _label(own), options))
    return found


def thin(settings: Sequence[Setting], most: int) -> list[Setting]:
    """At most `most` settings of each method, evenly spread over its list with both ends.

    First come all methods' first ones, and so on: if the time runs out, it does so for all alike.
    """
    methods: dict[str, list[Setting]] = {}
    for setting in settings:
        methods.setdefault(setting.method, []).append(setting)
    spread = [
        [
            own[i]
            for i in sorted({round(k * (len(own) - 1) / max(1, most - 1)) for k in range(most)})
        ]
        for own in methods.values()
    ]
    turns = itertools.zip_longest(*spread)
    return [setting for turn in turns for setting in turn if setting is not None]


def _read(own: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    rest = {name: value for name, value in own.items() if name != "file"}
    return {**_mapping(folder / own["file"]), **rest} if "file" in own else rest


def _mapping(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise InvalidConfig(f"{path}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise InvalidConfig(f"{path}: not YAML: {error}") from error
    if not isinstance(content, dict):
        raise InvalidConfig(f"{path}: must hold a mapping")
    return content


def _label(own: Mapping[str, Any]) -> str:
    values = (f"{name} {_short(value)}" for name, value in own.items())
    return ", ".join(values).replace("_", " ")


def _short(value: Any) -> str:
    if isinstance(value, list) and len(value) > 3:
        return "".join(map(str, value)) if set(value) <= {0, 1} else f"[{len(value)} values]"
    if isinstance(value, dict):
        return " ".join(f"{name} {each}" for name, each in value.items())
    return str(value)
