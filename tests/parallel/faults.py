"""What is broken on purpose, to see that it would be noticed or that it is borne."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def local_attention() -> Iterator[None]:
    """Each rank's queries see the keys of its own shard alone."""
    import xfuser.model_executor.layers.usp as usp

    names = ("get_sequence_parallel_world_size", "get_ulysses_parallel_world_size")
    kept = {name: getattr(usp, name) for name in names}
    vars(usp).update(dict.fromkeys(names, lambda: 1))
    try:
        yield
    finally:
        vars(usp).update(kept)


@contextmanager
def rows_apart() -> Iterator[None]:
    """DistVAE's convolutions see zeros where the neighbours' rows would be."""
    import distvae.models.layers.conv_mixin as mixin
    from torch.nn.functional import pad

    def zeros(rows: Any, axis: int, index: Any, widths: tuple[int, int], *_: Any, **__: Any) -> Any:
        return pad(rows, (0, 0) * (rows.ndim - axis - 1) + widths)

    kept, mixin.exchange_halo = mixin.exchange_halo, zeros
    try:
        yield
    finally:
        mixin.exchange_halo = kept


def exhaust(vae: Any) -> None:
    """The decoder runs out of memory once, in the midst of its first pass."""
    import torch

    def once(*_: Any) -> None:
        hook.remove()
        raise torch.OutOfMemoryError("CUDA out of memory")

    middle = [module for name, module in vae.decoder.named_modules() if name.endswith("mid_block")]
    hook = middle[0].register_forward_pre_hook(once)
