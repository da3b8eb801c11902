"""What a run computed, kept and how long it took, measured the same way for every method.

Methods replace `forward` of pipelines, transformers, blocks or attention layers. So work is counted where none of
them reaches: by pre-hooks on the linear layers inside the real blocks.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from warpcache_ray.models import adapter_for

HALF = 0.5
"""A denoiser call that does more than this share of its blocks' work counts as computed."""


@dataclass(slots=True)
class Watch:
    """One run's account. `work`: per denoiser call, per block, multiply-adds of linear layers."""

    work: list[list[float]] = field(default_factory=list)
    first_call: float | None = None
    decoding: float | None = None
    held_before: int = 0
    held: int = 0

    @property
    def seconds(self) -> float:
        """From the first denoiser call to the start of decoding."""
        assert self.first_call is not None
        assert self.decoding is not None
        return self.decoding - self.first_call

    @property
    def growth(self) -> int:
        """Bytes of tensors alive at the start of decoding that were not alive before the run."""
        return self.held - self.held_before


@dataclass(frozen=True, slots=True)
class Work:
    """What was computed, in units of guided evaluations (`calls`), and as a share of all block evaluations."""

    calls: float
    blocks: float


def work_done(run: Sequence[Sequence[float]], full: Sequence[Sequence[float]], steps: int) -> Work:
    """The work of a run beside that of the uncached run with `steps` steps."""
    unit, branches = full[0], len(full) / steps
    shares = [
        sum(own / whole for own, whole in zip(call, unit, strict=True)) / len(unit) for call in run
    ]
    return Work(sum(share > HALF for share in shares) / branches, sum(shares) / len(full))


def blocks_of(transformer: nn.Module) -> list[nn.Module]:
    """The transformer's blocks, in order."""
    adapter = adapter_for(transformer)
    if adapter is not None:
        return [block for name in adapter.block_lists for block in getattr(transformer, name)]
    lists = (c for n, c in transformer.named_children() if "blocks" in n)
    return [block for each in lists if isinstance(each, nn.ModuleList) for block in each]


@contextmanager
def watched(pipeline: Any, *, work: bool = True, decode: bool = True) -> Iterator[Watch]:
    """Watches a pipeline that nothing has been installed in yet.

    `work` counts work and memory; leave it out when time matters. Without `decode` the video is a black dummy.
    """
    watch = Watch()
    vae, original = pipeline.vae, pipeline.vae.decode
    hooks = [hook for t in _transformers(pipeline) for hook in _hooks(t, watch, work)]

    def decoding(latents: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        _wait(latents)
        watch.decoding = time.perf_counter()
        if work:
            watch.held = held_bytes()
        return original(latents, *args, **kwargs) if decode else (latents.new_zeros(1, 3, 1, 8, 8),)

    vae.decode = decoding
    if work:
        gc.collect()
        watch.held_before = held_bytes()
    try:
        yield watch
    finally:
        del vae.decode
        for hook in hooks:
            hook.remove()


def held_bytes() -> int:
    """Bytes of the storages of all tensors alive."""
    storages: dict[int, int] = {}
    for each in gc.get_objects():
        # isinstance would ask lazy modules and proxies for their class, and wake them.
        if issubclass(type(each), torch.Tensor):
            storage = each.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def _transformers(pipeline: Any) -> list[nn.Module]:
    found = (getattr(pipeline, name, None) for name in ("transformer", "transformer_2"))
    return [transformer for transformer in found if transformer is not None]


def _hooks(transformer: nn.Module, watch: Watch, work: bool) -> Iterator[Any]:
    blocks = blocks_of(transformer)

    def begin(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        if watch.first_call is None:
            _wait(kwargs.get("hidden_states", args[0] if args else None))
            watch.first_call = time.perf_counter()
        watch.work.append([0.0] * len(blocks))

    yield transformer.register_forward_pre_hook(begin, with_kwargs=True)
    for index, block in enumerate(blocks) if work else ():
        for layer in block.modules():
            if isinstance(layer, nn.Linear):
                yield layer.register_forward_pre_hook(_counting(watch, index))


def _counting(watch: Watch, index: int) -> Any:
    def count(layer: nn.Linear, args: tuple[torch.Tensor]) -> None:
        watch.work[-1][index] += args[0].numel() * layer.out_features

    return count


def _wait(tensor: Any) -> None:
    if isinstance(tensor, torch.Tensor) and tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)
