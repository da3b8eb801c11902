"""What each block changes from step to step, against the blocks' own inputs and outputs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from warpcache_ray.models import adapter_for
from warpcache_ray.tuning.blocks import TOKENS, Blocks
from warpcache_ray.tuning.record import record

CALL = {
    "prompt": "a cat",
    "height": 32,
    "width": 32,
    "num_frames": 9,
    "num_inference_steps": 6,
    "max_sequence_length": 16,
    "output_type": "latent",
}


def test_it_sees_what_each_block_changes(pipe: Any) -> None:
    """For each branch, block and step, nothing at the first; as large as the blocks' own inputs and outputs say. Hooks
    are gone afterwards."""
    added: list[Tensor] = []
    adapter = adapter_for(pipe.transformer)
    assert adapter is not None
    first = getattr(pipe.transformer, adapter.block_lists[0])[0]

    def see(module: Any, args: Any, kwargs: Any, out: Any) -> None:
        made = out[0] if isinstance(out, tuple) else out
        added.append(made - (args[0] if args else kwargs["hidden_states"]))

    handle = first.register_forward_hook(see, with_kwargs=True)
    recording = record(pipe, {**CALL, "generator": torch.Generator().manual_seed(3)})
    handle.remove()
    assert tuple(recording.blocks) == recording.branches
    count = sum(len(getattr(pipe.transformer, name)) for name in adapter.block_lists)
    for own in recording.blocks.values():
        assert [len(changes) for changes in own] == [6] * count
        assert all(changes[0] == 0 < min(changes[1:]) for changes in own)
    every = len(recording.branches)
    expected = float((added[every] - added[0]).norm() / added[every].norm())
    assert recording.blocks["cond"][0][1] == pytest.approx(expected, rel=1e-5)
    assert not first._forward_hooks


def test_few_tokens_are_kept() -> None:
    """Of a large model's, evenly spaced; each branch compares with itself alone."""
    blocks = Blocks(1)
    given, made = torch.zeros(1, 10 * TOKENS, 2), torch.ones(1, 10 * TOKENS, 2)
    for branch, factor in (("cond", 1.0), ("uncond", 5.0), ("cond", 2.0), ("uncond", 5.0)):
        blocks.branch = branch
        blocks.saw(0, given, factor * made)
    assert blocks.changes == {"cond": [[0.0, 0.5]], "uncond": [[0.0, 0.0]]}
    assert {tuple(kept.shape) for kept in blocks.before.values()} == {(1, TOKENS, 2)}
