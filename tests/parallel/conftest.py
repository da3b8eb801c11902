"""One pair of ranks for all tests of this folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from diffusers import DiffusionPipeline
from groups import Group
from runs import generate, quiet

from warpcache_ray.engine.engine import Engine


@pytest.fixture(scope="session")
def pair() -> Iterator[Group]:
    """Two processes; started at the first use, and again after a deadlock."""
    pair = Group()
    yield pair
    pair.stop()


@pytest.fixture(scope="session")
def pipe_of(folders: dict[str, Path]) -> Callable[[str], Any]:
    """A plain pipeline of each tiny model."""
    return cache(lambda model: quiet(DiffusionPipeline.from_pretrained(folders[model])))


@pytest.fixture(scope="session")
def alone(folders: dict[str, Path]) -> Callable[..., dict[str, Any]]:
    """`alone(model, **arguments)`: the same run on one rank, made once."""
    made: dict[str, dict[str, Any]] = {}
    engine_of = cache(lambda model: Engine.load(folders[model]))

    def run(model: str, **arguments: Any) -> dict[str, Any]:
        key = f"{model} {arguments}"
        if key not in made:
            made[key] = generate(engine_of(model), **arguments)
        return made[key]

    return run
