"""What a device would feel: how often the host waits for it, and compiled blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from torch.utils._python_dispatch import TorchDispatchMode

from warpcache_ray import disable_dit_cache, dit_cache_stats, enable_dit_cache
from warpcache_ray.engine.install import Installation

Run = Callable[..., Tensor]

STILL = {
    "never": "never",
    "interval": "interval",
    "taylorseer, output": {"name": "taylorseer", "site": "output"},
    "taylorseer, blocks": {"name": "taylorseer", "site": "blocks"},
    "auto": {"name": "auto", "max_calls": 3},
}
"""Policies that decide without looking."""
LOOKING = {
    "first_block": {"name": "first_block", "threshold": 0.5},
    "worldcache": {"name": "worldcache", "threshold": 0.5, "warp": True, "warp_from": 0},
    "easycache": {"name": "easycache", "threshold": 0.5},
    "dicache": {"name": "dicache", "threshold": 0.5},
    "teacache": {"name": "teacache", "threshold": 0.5},
    "warpcache": {"name": "warpcache", "preset": "fast"},
}


class _Waits(TorchDispatchMode):
    """Counts what makes the host wait for a device: reading a tensor's values. Plans are tables of other types, which
    the host keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            self.count += args[0].dtype is torch.float32
        return func(*args, **(kwargs or {}))


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Fills with the waits of each denoiser call."""
    counts: list[int] = []
    called, tolist = Installation.called, Tensor.tolist

    @contextmanager
    def counting() -> Iterator[None]:
        with _Waits() as mode:

            def listed(tensor: Tensor) -> Any:
                mode.count += tensor.dtype is torch.float32
                return tolist(tensor)

            monkeypatch.setattr(Tensor, "tolist", listed)
            yield
            monkeypatch.setattr(Tensor, "tolist", tolist)
        counts.append(mode.count)

    def counted(*args: Any) -> Any:
        with counting():
            return called(*args)

    monkeypatch.setattr(Installation, "called", counted)
    return counts


@pytest.mark.parametrize("name", STILL)
def test_nobody_waits_where_nothing_is_measured(
    pipe: Any, latents: Run, waits: list[int], name: str
) -> None:
    """After a run's first call, which reads the schedule, no call of these policies waits for the device."""
    enable_dit_cache(pipe, STILL[name])
    latents(pipe)
    assert len(waits) >= 8
    assert max(waits[1:]) == 0


@pytest.mark.parametrize("name", LOOKING)
def test_a_decision_waits_once(pipe: Any, latents: Run, waits: list[int], name: str) -> None:
    """At most one reading for each decision that was measured, however it is then approximated."""
    enable_dit_cache(pipe, LOOKING[name])
    latents(pipe)
    records = dit_cache_stats(pipe).records
    measured = sum(r.decision.drift is not None for r in records)
    assert any(r.decision.skips for r in records)
    assert 0 < sum(waits[1:]) <= measured


@pytest.mark.parametrize("site", ["output", "blocks", "layer"])
def test_compiled_blocks_stay_compiled(pipe: Any, latents: Run, site: str) -> None:
    """Blocks compiled before the cache is put in run as one graph each, as often as they are computed, with the same
    result."""
    policy = {"name": "taylorseer", "site": site, "interval": 3}
    enable_dit_cache(pipe, policy)
    expected = latents(pipe)
    disable_dit_cache(pipe)
    counter = CompileCounter()
    torch._dynamo.reset()
    # diffusers doesn't say which Cosmos' are.
    pipe.transformer._repeated_blocks = pipe.transformer._repeated_blocks or [
        "CosmosTransformerBlock"
    ]
    pipe.transformer.compile_repeated_blocks(backend=counter, fullgraph=True)
    enable_dit_cache(pipe, policy)
    torch.testing.assert_close(latents(pipe), expected, atol=1e-5, rtol=1e-4)
    kinds = {type(m) for m in pipe.transformer.modules() if m._compiled_call_impl is not None}
    graphs = counter.frame_count
    assert len(kinds) <= graphs <= 3 * len(kinds)
    latents(pipe, seed=1)
    assert counter.frame_count == graphs
    assert any(r.decision.skips for r in dit_cache_stats(pipe).records)
