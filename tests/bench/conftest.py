from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from warpcache_ray.bench.conditions import Conditions
from warpcache_ray.bench.measure import Prompt, Reference, reference
from warpcache_ray.bench.runner import quiet

STEPS = 8


@pytest.fixture(autouse=True, scope="session")
def _quiet() -> None:
    quiet()


@pytest.fixture(scope="session")
def tiny(folders: dict[str, Path]) -> Callable[[str], Conditions]:
    """Conditions for one of the tiny models."""
    return lambda name: Conditions(str(folders[name]), name, 32, 32, 9, STEPS)


@pytest.fixture
def prompt() -> Prompt:
    """A prompt and its seed."""
    return Prompt("a cat runs fast", 0)


@pytest.fixture(scope="session")
def uncached(
    tiny: Callable[[str], Conditions], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Reference]:
    """The reference of a tiny model."""
    folder = tmp_path_factory.mktemp("references")
    return lambda name: reference(tiny(name), Prompt("a cat runs fast", 0), folder)
