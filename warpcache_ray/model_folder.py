"""A pipeline's folder, looked at before anything of it is loaded: is each component there, and whole?"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from warpcache_ray.errors import InvalidConfig

INDEX = "model_index.json"
_LIBRARIES = ("diffusers", "transformers")
_CONFIGS = ("*config.json", "tokenizer.json", "*.model")


def check_components(folder: Path, elsewhere: tuple[str, ...] = ()) -> None:
    """Every component that a pipeline's index names is in its folder: its configuration, and all files of its weights
    but of those that are `elsewhere`.

    Raises:
        InvalidConfig: one isn't; names it, its class and what is missing.
    """
    for name, kind, missing in components(folder, elsewhere):
        if missing is not None:
            raise InvalidConfig(
                f"model.path = {str(folder)!r}: its {INDEX} names {name} ({kind}), but there is {missing}; copy or "
                "download the whole folder",
                "model.path",
            )


def components(
    folder: Path, elsewhere: tuple[str, ...] = ()
) -> Iterator[tuple[str, str, str | None]]:
    """Each component that a pipeline's index names, its class, and what is missing of it, in words; weights that are
    `elsewhere` aren't.

    Raises:
        InvalidConfig: the index, or one of a component's weights, can't be read.
    """
    for name, given in read_json(folder / INDEX).items():
        # What comes from other libraries, such as a guardrail, is looked for by them.
        if isinstance(given, list) and given[0] in _LIBRARIES and given[1]:
            yield name, given[1], _missing(folder / name, given[1], name in elsewhere)


def _missing(place: Path, kind: str, elsewhere: bool) -> str | None:
    """What isn't there, in words."""
    if not place.is_dir():
        return f"no folder {place.name}/"
    if not any(found for pattern in _CONFIGS for found in place.glob(pattern)):
        return f"no configuration in {place.name}/"
    # Schedulers, tokenizers and processors call theirs otherwise.
    is_model = (place / "config.json").is_file() and "Tokenizer" not in kind
    if elsewhere or not is_model:
        return None
    index = next(place.glob("*.index.json"), None)
    if index is not None:
        shards = sorted(set(read_json(index)["weight_map"].values()))
        lost = next((shard for shard in shards if not (place / shard).is_file()), None)
        return lost and f"no {place.name}/{lost}, one of the {len(shards)} files of its weights"
    weights = (*place.glob("*.safetensors"), *place.glob("*.bin"))
    return None if weights else f"no weights (*.safetensors) in {place.name}/"


def read_json(file: Path) -> dict[str, Any]:
    """The content of one of a model's JSON files.

    Raises:
        InvalidConfig: it can't be read.
    """
    try:
        content: dict[str, Any] = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise InvalidConfig(f"model.path: {file} can't be read: {error}", "model.path") from error
    return content
