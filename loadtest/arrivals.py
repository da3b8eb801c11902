"""When requests come and what they ask for: from a Poisson clock, or as a trace has them. Plain functions of a seed."""

from __future__ import annotations

import csv
import json
import math
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

T = TypeVar("T")

PROMPTS = (
    "a red circle moving right fast over a blue background",
    "a yellow square moving left fast over a blue background, camera panning up",
    "a white star staying still over a purple background",
    "a green triangle moving up slow over an orange background, camera panning left",
)


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request, and what its client will do. `at` is in seconds since the load began."""

    at: float
    body: dict[str, Any]
    client: str | None = None
    """The key that the client sends."""
    cancel_after_s: float | None = None
    """Since the job was acknowledged; None lets it live."""
    listens: bool = True
    """Follows its job by events; else it polls."""


@dataclass(frozen=True, slots=True)
class Mix(Generic[T]):
    """Values, and how often each is drawn beside the others."""

    values: tuple[T, ...]
    weights: tuple[float, ...]

    def draw(self, dice: random.Random) -> T:
        """One of the values."""
        return dice.choices(self.values, self.weights)[0]


@dataclass(frozen=True, slots=True)
class Load:
    """How requests are drawn. An empty shape leaves size and frames to the service."""

    seed: int = 0
    shapes: Mix[dict[str, int]] = field(default_factory=lambda: Mix(({},), (1.0,)))
    steps: Mix[int] = field(default_factory=lambda: Mix((20,), (1.0,)))
    qualities: Mix[str] = field(default_factory=lambda: Mix(("balanced",), (1.0,)))
    priorities: Mix[str] = field(default_factory=lambda: Mix(("normal",), (1.0,)))
    cancel_share: float = 0.0
    cancel_within_s: float = 10.0
    """Who cancels does so after a random time of up to this."""
    events_share: float = 0.5

    def __post_init__(self) -> None:
        for name in ("cancel_share", "events_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(
                    f"{name} = {getattr(self, name)} is not allowed; it must be 0 to 1"
                )


def read_mix(name: str, text: str, read: Callable[[str], T]) -> Mix[T]:
    """`value:weight,value:weight…`; a weight that is left out is 1.

    Raises:
        ValueError: names the option, the part and what is allowed.
    """
    values, weights = [], []
    for part in text.split(","):
        value, _, weight = part.strip().partition(":")
        try:
            values.append(read(value))
            weights.append(float(weight or 1))
        except ValueError as error:
            raise ValueError(
                f"{name}: {part.strip()!r} is not allowed ({error}); it must be value or value:weight"
            ) from error
        if not 0 < weights[-1] < math.inf:
            raise ValueError(f"{name}: weight {weight} is not allowed; it must be above 0")
    return Mix(tuple(values), tuple(weights))


def read_shape(text: str) -> dict[str, int]:
    """`HEIGHTxWIDTHxFRAMES`, or nothing for the service's own.

    Raises:
        ValueError: it is neither.
    """
    if not text:
        return {}
    sizes = [int(part) for part in text.split("x")]
    if len(sizes) != 3:
        raise ValueError("a shape is HEIGHTxWIDTHxFRAMES, as 64x64x17")
    return dict(zip(("height", "width", "num_frames"), sizes, strict=True))


def poisson(rate: float, load: Load) -> Iterator[Arrival]:
    """Arrivals without end, `rate` a second in the mean, each independent of those before it.

    Raises:
        ValueError: a rate that isn't above 0.
    """
    if not 0 < rate < math.inf:
        raise ValueError(f"rate = {rate} is not allowed; it must be above 0")
    return _clock(rate, load)


def _clock(rate: float, load: Load) -> Iterator[Arrival]:
    dice = random.Random(load.seed)
    at, number = 0.0, 0
    while True:
        at += dice.expovariate(rate)
        yield _arrival(at, _body(load, number, dice), None, load, dice)
        number += 1


def replay(path: Path, load: Load) -> Iterator[Arrival]:
    """The arrivals of a trace: a CSV file with a header or a JSONL file, a row each with `t` (seconds, not falling)
    and any of `prompt`, `height`, `width`, `frames`, `steps`, `priority`, `client`. What a row leaves out is left to
    the service, the prompt drawn; who cancels and who listens is drawn too.

    Raises:
        ValueError: names the line, the field, the value and what is allowed.
    """
    dice = random.Random(load.seed)
    before = 0.0
    for number, (line, row) in enumerate(_rows(path)):
        given = {name: value for name, value in row.items() if value not in (None, "")}
        unknown = set(given) - set(_COLUMNS)
        if unknown:
            raise ValueError(
                f"{path}, line {line}: {', '.join(map(repr, sorted(map(str, unknown))))} is unknown; "
                f"there are {', '.join(_COLUMNS)}"
            )
        read = {name: _read(path, line, name, value) for name, value in given.items()}
        at, client = read.pop("t", None), read.pop("client", None)
        if at is None or not before <= at < math.inf:
            raise ValueError(
                f"{path}, line {line}: t = {given.get('t')!r} is not allowed; it must be at least {before}"
            )
        before = at
        asked = {_FIELDS.get(name, name): value for name, value in read.items()}
        body = {"prompt": dice.choice(PROMPTS), "seed": number, **asked}
        yield _arrival(at, body, client, load, dice)


_COLUMNS: dict[str, Callable[[Any], Any]] = {
    "t": float,
    "prompt": str,
    "height": int,
    "width": int,
    "frames": int,
    "steps": int,
    "priority": str,
    "client": str,
}
_FIELDS = {"frames": "num_frames", "steps": "num_inference_steps"}


def _rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    if path.suffix not in (".csv", ".jsonl"):
        raise ValueError(f"{path} is no trace; its name must end in .csv or .jsonl")
    with path.open(newline="") as file:
        if path.suffix == ".csv":
            yield from enumerate(csv.DictReader(file), start=2)
            return
        for line, text in enumerate(file, start=1):
            try:
                yield line, dict(json.loads(text))
            except (ValueError, TypeError) as error:
                raise ValueError(f"{path}, line {line} is no JSON object: {error}") from error


def _read(path: Path, line: int, name: str, value: Any) -> Any:
    try:
        return _COLUMNS[name](value)
    except (ValueError, TypeError) as error:
        kind = _COLUMNS[name].__name__
        raise ValueError(
            f"{path}, line {line}: {name} = {value!r} is not allowed; it must be a {kind}"
        ) from error


def _body(load: Load, number: int, dice: random.Random) -> dict[str, Any]:
    return {
        "prompt": dice.choice(PROMPTS),
        "seed": number,
        **load.shapes.draw(dice),
        "num_inference_steps": load.steps.draw(dice),
        "quality": load.qualities.draw(dice),
        "priority": load.priorities.draw(dice),
    }


def _arrival(
    at: float, body: dict[str, Any], client: str | None, load: Load, dice: random.Random
) -> Arrival:
    cancels, listens = dice.random() < load.cancel_share, dice.random() < load.events_share
    patience = dice.uniform(0, load.cancel_within_s)
    return Arrival(at, body, client, patience if cancels else None, listens)
