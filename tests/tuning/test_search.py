"""Searches on a tiny model: what they cost, what they choose, and that they go on where they were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from warpcache_ray.errors import InvalidRequest
from warpcache_ray.models import adapter_for
from warpcache_ray.policy_document import Target
from warpcache_ray.tuning.runs import Request, Runs
from warpcache_ray.tuning.search import GENERATIONS, Profile, search

ARGUMENTS = {
    "height": 32,
    "width": 32,
    "num_frames": 9,
    "num_inference_steps": 8,
    "max_sequence_length": 16,
}
REQUESTS = [Request(prompt, seed) for seed, prompt in enumerate(("a cat", "a dog", "a field"))]


class Counter:
    """Counts the calls of a pipeline's transformer that it really computes: those of its first block."""

    def __init__(self, pipe: Any) -> None:
        self.calls = 0
        adapter = adapter_for(pipe.transformer)
        assert adapter is not None
        first = getattr(pipe.transformer, adapter.block_lists[0])[0]
        first.register_forward_pre_hook(self._called)

    def _called(self, module: Any, inputs: Any) -> None:
        self.calls += 1


def _search(pipe: Any, work: Path, target: Target, requests: Any = REQUESTS) -> Profile:
    return search(Runs(pipe, ARGUMENTS, work), requests, target, 0.95, progress=False)


@pytest.mark.parametrize(
    ("model", "target"),
    [
        ("wan", Target("psnr", 40.0)),
        ("hunyuan", Target("ssim", 0.9)),
        ("cosmos", Target("calls", 3)),
    ],
)
def test_it_costs_what_it_says(pipe: Any, tmp_path: Path, model: str, target: Target) -> None:
    """At most twelve generations, counted in calls of the denoiser; then it is all on disk and costs nothing."""
    counter = Counter(pipe)
    found = _search(pipe, tmp_path, target)
    branches = 1 if model == "hunyuan" else 2
    assert counter.calls == pytest.approx(found.generations * 8 * branches)
    assert 4 < found.generations <= GENERATIONS
    assert found.noise.psnr > 40
    assert found.policy.max_calls == (3 if target.metric == "calls" else found.calls)
    before = counter.calls
    assert _search(pipe, tmp_path, target) == found
    assert counter.calls == before


@pytest.mark.parametrize("model", ["wan"])
def test_a_higher_target_takes_more_calls(pipe: Any, tmp_path: Path) -> None:
    """And the share expected to keep the target is at least the one asked for, with the fewest calls that do."""
    low, high = (_search(pipe, tmp_path, Target("psnr", db)) for db in (20.0, 45.0))
    assert low.calls < high.calls
    for found in (low, high):
        share = found.expected_share(found.calls)
        assert share is not None
        assert share >= 0.95
        fewer = found.expected_share(found.calls - 1)
        assert found.calls == 1 or (fewer is not None and fewer < 0.95)
        assert found.bound("psnr", found.calls, 0.95) >= found.target.bound
        assert found.benefit()[-1] == (pytest.approx(found.generations), found.calls)


@pytest.mark.parametrize("model", ["wan"])
def test_trials_are_compared_step_by_step(pipe: Any, tmp_path: Path) -> None:
    """For the first request: no error before the first gap, one after."""
    found = _search(pipe, tmp_path, Target("calls", 3))
    traced = [t for t in found.trials if t.score.errors is not None]
    assert {t.request.seed for t in traced} == {0}
    errors = np.array(traced[0].score.errors)
    assert errors.shape == (8,)
    assert errors[0] < 1e-6 < errors[-1]


@pytest.mark.parametrize("model", ["wan"])
def test_what_is_out_of_reach_is_refused(pipe: Any, tmp_path: Path) -> None:
    """The message says what can be kept, and with how many calls."""
    with pytest.raises(
        InvalidRequest, match=r"target_psnr: 99 .*all 8 calls; what can: .* with 7 and .* with 4"
    ) as caught:
        _search(pipe, tmp_path, Target("psnr", 99.0))
    assert caught.value.param == "target_psnr"


@pytest.mark.parametrize("model", ["wan"])
def test_what_cannot_be_planned_ends_at_once(pipe: Any, tmp_path: Path) -> None:
    """A model of few steps: one run, and the reason."""
    runs = Runs(pipe, {**ARGUMENTS, "num_inference_steps": 4}, tmp_path)
    with pytest.raises(InvalidRequest, match=r"few steps.*5 or more"):
        search(runs, REQUESTS, Target("psnr", 30.0), 0.95, progress=False)
    assert runs.generations == 1


@pytest.mark.parametrize("model", ["wan"])
@pytest.mark.parametrize("count", [1, 10])
def test_requests_must_fit(pipe: Any, tmp_path: Path, count: int) -> None:
    """One tells nothing of the others; ten leave no room for candidates."""
    requests = [Request("a cat", seed) for seed in range(count)]
    with pytest.raises(InvalidRequest, match=f"count: {count} prompts .* takes 2 to 9"):
        _search(pipe, tmp_path, Target("calls", 3), requests)
