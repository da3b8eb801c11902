"""What every contender gives, and how a bare pipeline gives it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from warpcache_ray.engine.events import Generation


@dataclass(frozen=True, slots=True)
class Made:
    """A video (T, H, W, 3); `cache_bytes` is the peak of what was cached, where the contender tells it."""

    frames: NDArray[np.uint8]
    cache_bytes: int | None = None


Generate = Callable[[Generation], Made]

Kind = Callable[[Any, Mapping[str, Any], int], AbstractContextManager[Generate]]
"""(fresh pipeline, options, steps) → within the context, the contender's way to generate."""


def run(pipeline: Any, generation: Generation) -> Made:
    """The pipeline as it is."""
    generator = torch.Generator().manual_seed(generation.seed)
    arguments = {**generation.pipeline_arguments(), "generator": generator, "output_type": "np"}
    frames = np.asarray(pipeline(**arguments).frames[0])
    return Made((frames * 255).round().astype(np.uint8))
