"""Replays of other policies: as many calls as their real runs make, and errors that follow from the outputs."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch

from warpcache_ray import disable_dit_cache, dit_cache_stats, enable_dit_cache
from warpcache_ray.core.gram import FORWARD, Gram, outputs_gram, prior
from warpcache_ray.core.schedule import plan
from warpcache_ray.core.types import Course
from warpcache_ray.tuning.outlook import predicted
from warpcache_ray.tuning.record import record
from warpcache_ray.tuning.rivals import EDGES, cheapest, rivals
from warpcache_ray.tuning.search import error

CALL = {
    "prompt": "a cat",
    "height": 32,
    "width": 32,
    "num_frames": 9,
    "num_inference_steps": 12,
    "max_sequence_length": 16,
    "output_type": "latent",
}


def _course(steps: int, guidance: float | None = None) -> Course:
    sigmas = tuple(1 - i / steps for i in range(steps + 1))
    return Course(sigmas, guidance, tuple(b - a for a, b in pairwise(sigmas)))


def test_straight_outputs_are_foretold() -> None:
    """Outputs on a straight line: a Taylor series of the first order makes no error after its second step, reuse does;
    without a skip there is none at all."""
    generator = torch.Generator().manual_seed(0)
    start, slope = torch.randn(2, 400, generator=generator)
    outputs = torch.stack([start + i * slope for i in range(20)])
    gram = Gram.of(_course(20).sigmas[:-1], outputs_gram(outputs), FORWARD)
    found = rivals(gram, _course(20))
    early, late = (
        [r for r in found if r.policy.name == "taylorseer" and r.policy.warmup == warmup]
        for warmup in (1, 3)
    )
    assert min(r.predicted for r in late) > 60 > max(r.predicted for r in early)
    assert all(r.predicted < 60 for r in found if r.policy.name == "lemica")
    assert all(r.predicted >= 90 for r in found if r.calls == 20)


@pytest.mark.parametrize("model", ["wan", "hunyuan"])
def test_replays_make_the_calls_of_real_runs(pipe: Any) -> None:
    """Each policy, one setting of it, on the run that the matrix is from. EasyCache sees its own drifted latents in a
    real run, and differs by a call."""
    recording = record(pipe, {**CALL, "generator": torch.Generator().manual_seed(1)})
    assert recording.course is not None
    gram = Gram.of(recording.course.sigmas[:-1], recording.gram(), recording.branches)
    kinds = {rival.policy.name: rival for rival in rivals(gram, recording.course)}
    assert set(kinds) == set(EDGES)
    for name, rival in kinds.items():
        enable_dit_cache(pipe, rival.policy)
        pipe(**CALL, generator=torch.Generator().manual_seed(1))
        real = dit_cache_stats(pipe).recomputed / len(recording.branches)
        disable_dit_cache(pipe)
        assert rival.calls == pytest.approx(real, abs=1 if name == "easycache" else 0)


def test_the_cheapest_is_good_enough() -> None:
    """Of each policy the fewest calls that have the quality, none where none has; `auto` needs fewer than all of them
    on the demo model's outputs."""
    sigmas = (*prior().sigmas, 0.0)
    course = Course(sigmas, 4.0, tuple(b - a for a, b in pairwise(sigmas)))
    found, chart = rivals(prior(), course), plan(prior(), course)
    for calls in (10, 14, 18):
        needed = predicted(error(chart, calls))
        best = cheapest(found, needed)
        for name, rival in best.items():
            assert rival.predicted >= needed
            own = [r for r in found if r.policy.name == name and r.calls < rival.calls]
            assert all(r.predicted < needed for r in own)
            assert rival.calls > calls
    assert best
    assert cheapest(found, 200.0) == {}
