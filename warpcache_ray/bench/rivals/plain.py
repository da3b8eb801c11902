"""No cache at all: fewer steps, and runs disturbed so little that nobody would call the result another one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch.nn.attention import SDPBackend, sdpa_kernel

from warpcache_ray.bench.rivals.made import Generate, run
from warpcache_ray.tuning.runs import perturbed


@contextmanager
def fewer_steps(pipeline: Any, options: Mapping[str, Any], steps: int) -> Iterator[Generate]:
    """The same pipeline with `steps: n`."""
    yield lambda g: run(pipeline, replace(g, num_inference_steps=options["steps"]))


@contextmanager
def control(pipeline: Any, options: Mapping[str, Any], steps: int) -> Iterator[Generate]:
    """A harmless disturbance: `attention: math` (another exact kernel), or `latents: e` (first latents × (1 + e))."""
    if "attention" in options:
        with sdpa_kernel(getattr(SDPBackend, options["attention"].upper())):
            yield lambda g: run(pipeline, g)
        return
    with perturbed(pipeline, float(options["latents"])):
        yield lambda g: run(pipeline, g)
