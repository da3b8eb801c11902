"""What the page at `/` shows beside the service itself, as the configuration says."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter

from warpcache_ray.errors import InvalidConfig

PACKAGE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class PageConfig:
    """`prompts` are offered as examples. `front` is a `bench.json` that `warpcache bench` wrote for the served model, a
    file or one inside this package: its measured speed and quality are drawn, with the service's settings on it."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    prompts: tuple[str, ...] = ()
    front: str = ""


@dataclass(frozen=True, slots=True)
class Front:
    """What was measured of a model: runs of so many `steps`, over so many `prompts`; each method's (calls, mean PSNR in
    dB against uncached)."""

    model: str
    size: str
    steps: int
    prompts: int
    methods: dict[str, tuple[tuple[float, float], ...]]


def read_front(config: PageConfig) -> Front | None:
    """The front that the configuration names, if it names one.

    Raises:
        InvalidConfig: no such file, or not what `warpcache bench` writes.
    """
    if not config.front:
        return None
    where = "page.front"
    places = (Path(config.front).expanduser(), PACKAGE / config.front)
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise InvalidConfig(f"{where} = {config.front!r}: there is no such file", where)
    try:
        return _front(json.loads(path.read_text()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        message = f"{where} = {config.front!r}: not a bench.json of `warpcache bench` ({error!r})"
        raise InvalidConfig(message, where) from error


def _front(bench: dict[str, Any]) -> Front:
    found = {m: entry["front"] for m, entry in bench["methods"].items() if entry.get("front")}
    run = bench["conditions"]
    return _ADAPTER.validate_python(
        {
            "model": bench["model"],
            "size": f"{run['width']}×{run['height']}, {run['num_frames']} frames",
            "steps": run["steps"],
            "prompts": bench["prompts"],
            "methods": found,
        }
    )


_ADAPTER: TypeAdapter[Front] = TypeAdapter(Front)
