"""The decoder's memory: where it doesn't suffice for a whole video, the video is decoded in tiles."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from warpcache_ray.engine.instead import instead


@dataclass(slots=True)
class Decoding:
    """How the decoding within `tiled_if_too_large` went."""

    tiled: bool = False


@contextmanager
def tiled_if_too_large(vae: Any) -> Iterator[Decoding]:
    """Within, a `vae.decode` that runs out of memory is made once more from the same latents, tile by tile."""
    decode, decoding = vae.decode, Decoding()

    def careful(*args: Any, **kwargs: Any) -> Any:
        try:
            return decode(*args, **kwargs)
        except torch.OutOfMemoryError:
            if not hasattr(vae, "enable_tiling") or vae.use_tiling:
                raise
            decoding.tiled = True
        # Not in the handler: the traceback would keep the first attempt's tensors.
        free_memory()
        vae.enable_tiling()
        try:
            return decode(*args, **kwargs)
        finally:
            vae.disable_tiling()

    with instead(vae, "decode", careful):
        yield decoding


def free_memory() -> None:
    """Gives back what a failed attempt left."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
