"""This project's policies, through the engine that serves them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from warpcache_ray.bench.rivals.made import Generate, Made
from warpcache_ray.engine.engine import Engine
from warpcache_ray.engine.events import Generation
from warpcache_ray.policy_spec import parse_policy


@contextmanager
def policy(pipeline: Any, options: Mapping[str, Any], steps: int) -> Iterator[Generate]:
    """`name` and parameters, as everywhere."""
    chosen = parse_policy(options)
    engine = Engine(pipeline)

    def generate(generation: Generation) -> Made:
        result = engine.generate(generation, chosen)
        return Made(result.frames, result.stats.peak_cache_bytes)

    try:
        yield generate
    finally:
        engine.installation.remove()
