"""What the engine has to know of a transformer class to cache its block stack: data, no code of the model's."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import Tensor

from warpcache_ray.core.types import Grid

Pack = Callable[[tuple[Tensor, ...], bool], Any]
"""Puts a denoiser's outputs into the form that its pipelines expect, with or without `return_dict`."""


def packed(outputs: tuple[Tensor, ...], return_dict: bool) -> Any:
    """As almost all of diffusers' transformers do."""
    return Transformer2DModelOutput(sample=outputs[0]) if return_dict else outputs


@dataclass(frozen=True, slots=True)
class BlockList:
    """A module list whose blocks run one after the other. A block gives back its arguments `returns`, changed, in that
    order; of these `video` holds the tokens of the video. With `prefixed` other tokens (text, earlier frames) stand in
    the same tensor before the video's."""

    name: str
    returns: tuple[str, ...] = ("hidden_states",)
    video: str = "hidden_states"
    prefixed: bool = False


@dataclass(frozen=True, slots=True)
class ModelAdapter:
    """The class `transformer` runs `lists` one after the other.

    `latent` names the axes of what it denoises: batch, channels, time, height, width, or tokens (n) where pipelines
    pack these; `sizes` are then the arguments that tell frames, rows and columns. Of its channels the first
    config[`noisy`] are denoised, the rest is conditioning. `guidance` is added to the pipelines' scale where that
    weighs cond − uncond on top of cond, not of uncond. Pipelines that are guided make both branches in one call where
    `together` says so, and announce nothing. With `to_the_end`, late blocks read what early ones gave beside the
    stream, so what is skipped at site blocks has to reach to the last block.
    """

    transformer: str
    lists: tuple[BlockList, ...]
    latent: str = "bcthw"
    sizes: tuple[str, str, str] | None = None
    noisy: str = "out_channels"
    guidance: float = 0.0
    together: bool = False
    to_the_end: bool = False
    pack: Pack = packed

    @property
    def block_lists(self) -> tuple[str, ...]:
        """The names of the module lists."""
        return tuple(each.name for each in self.lists)

    def grid(self, config: Any, latent: Tensor, arguments: Mapping[str, Any] | None = None) -> Grid:
        """The video's tokens in a denoiser call with these arguments; of packed ones whose sizes aren't told, a row."""
        if "n" in self.latent:
            told = [(arguments or {}).get(name) for name in self.sizes or ()]
            grid = Grid(*told) if told and None not in told else None  # type: ignore[arg-type]
            tokens = latent.shape[self.latent.index("n")]
            return grid if grid and grid.tokens == tokens else Grid(1, 1, tokens)
        size = dict(zip(self.latent, latent.shape, strict=True))
        patch = dict(zip("thw", patch_of(config), strict=True))
        return Grid(*(math.ceil(size.get(axis, 1) / patch[axis]) for axis in "thw"))


def patch_of(config: Any) -> tuple[int, int, int]:
    """Frames, rows and columns of the latent that a token spans."""
    patch = config.patch_size
    if isinstance(patch, int):
        return (config.get("patch_size_t") or 1, patch, patch)
    depth, rows, columns = (1, *patch)[-3:]
    return (depth, rows, columns)
