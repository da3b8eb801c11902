import numpy as np
import pytest
import torch
from torch import nn

from warpcache_ray.bench.conditions import fingerprint
from warpcache_ray.bench.counting import Work, blocks_of, held_bytes, watched, work_done
from warpcache_ray.bench.rivals.made import run

FULL = [[2.0, 8.0]] * 8
"""Four steps of two branches, over two blocks of different size."""


@pytest.mark.parametrize(
    ("run_work", "expected"),
    [
        (FULL, Work(4, 1)),
        # Two of four steps.
        (FULL[:4], Work(2, 0.5)),
        # A lone branch is half a call.
        (FULL[:3], Work(1.5, 3 / 8)),
        # A probe of one block of two: no call, but a block each time.
        (FULL[:4] + [[2.0, 0.0]] * 4, Work(2, 0.75)),
        # Layers left out inside the blocks.
        ([[1.0, 8.0]] * 8, Work(4, 0.75)),
        ([], Work(0, 0)),
    ],
)
def test_work_in_calls_and_blocks(run_work, expected):
    """Blocks count alike, whatever their size."""
    assert work_done(run_work, FULL, steps=4) == expected


def test_a_plain_run_is_counted(model, tiny, prompt, uncached):
    """Every step has the same work in every block, for each branch; watching changes nothing."""
    conditions, kept = tiny(model), uncached(model)
    branches = {"wan": 2, "hunyuan": 1, "cosmos": 2}[model]
    assert len(kept.work) == conditions.steps * branches
    assert len(kept.work[0]) == 4
    assert all(call == kept.work[0] and min(call) > 0 for call in kept.work)
    plain = run(conditions.pipeline(), conditions.generation(prompt.text, prompt.seed))
    assert np.array_equal(plain.frames, kept.frames)


def test_watching_ends(tiny, prompt):
    """Hooks and the stand-in for decoding are gone afterwards; without decoding the time is still taken."""
    conditions = tiny("wan")
    pipeline = conditions.pipeline()
    with watched(pipeline, work=False, decode=False) as watch:
        made = run(pipeline, conditions.generation(prompt.text, prompt.seed))
    assert watch.seconds > 0
    assert made.frames.shape != (9, 32, 32, 3)
    assert "decode" not in vars(pipeline.vae)
    assert not pipeline.transformer._forward_pre_hooks


def test_held_bytes_sees_a_tensor_once():
    """Views share their storage."""
    before = held_bytes()
    kept = torch.zeros(1000)
    views = [kept[:10], kept.view(10, 100)]
    assert held_bytes() - before == 4000
    del kept, views


def test_blocks_of_an_unknown_transformer():
    """Lists whose names say blocks."""
    unknown = nn.Module()
    unknown.blocks = nn.ModuleList([nn.Linear(1, 1)])
    unknown.norms = nn.ModuleList([nn.LayerNorm(1)])
    assert blocks_of(unknown) == [unknown.blocks[0]]


def test_fingerprint_follows_the_weights(folders, tmp_path):
    """Of files; a hub id stands for itself."""
    assert fingerprint(str(folders["wan"])) != fingerprint(str(folders["hunyuan"]))
    assert fingerprint("owner/name") == "owner/name"
