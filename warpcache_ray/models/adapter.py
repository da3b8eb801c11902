"""What the engine has to know of a transformer class to cache its block stack."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from warpcache_ray.core.types import Grid


@dataclass(frozen=True, slots=True)
class ModelAdapter:
    """`block_lists` name the module lists that run one after the other; `joint` blocks take and give text tokens
    beside the video's; `grid` tells the token grid of a latent (batch, channels, frames, rows, columns). `guidance` is
    added to the pipelines' scale where that weighs cond − uncond on top of cond, not of uncond."""

    transformer: str
    block_lists: tuple[str, ...]
    joint: bool
    grid: Callable[[Any, Tensor], Grid]
    guidance: float = 0.0
