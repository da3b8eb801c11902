"""Runs on disk: made once, by one process at a time, and whole or not there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from warpcache_ray.core.policies.auto import Auto
from warpcache_ray.engine.fingerprints import policy_key
from warpcache_ray.engine.install import find
from warpcache_ray.errors import InvalidRequest
from warpcache_ray.tuning.record import record
from warpcache_ray.tuning.runs import Request, Runs, perturbed

ARGUMENTS = {
    "height": 32,
    "width": 32,
    "num_frames": 9,
    "num_inference_steps": 8,
    "max_sequence_length": 16,
}
FIRST, SECOND = Request("a cat", 0), Request("a dog", 1)


@pytest.fixture
def runs(pipe: Any, tmp_path: Path) -> Runs:
    return Runs(pipe, ARGUMENTS, tmp_path)


def test_a_reference_is_the_plain_run(runs: Runs) -> None:
    """The pipeline's own video, Gram matrix and course; read back as it was made; the first with its latents."""
    call = {**ARGUMENTS, "prompt": "a cat", "generator": torch.Generator().manual_seed(0)}
    plain = record(runs.pipe, {**call, "output_type": "np"})
    reference = runs.reference(FIRST)
    assert np.array_equal(reference.frames, (np.asarray(plain.result[0]) * 255).round())
    assert np.array_equal(reference.gram, plain.gram().numpy())
    assert (reference.course, reference.branches) == (plain.course, plain.branches)
    assert reference.shape == plain.shape
    blocks = np.array([plain.blocks[branch] for branch in plain.branches], np.float32)
    assert np.array_equal(reference.blocks, blocks)
    assert reference.trajectory is not None
    assert len(reference.trajectory) == 8
    assert runs.reference(SECOND).trajectory is None
    assert runs.generations == 2


def test_scores_count_their_calls(runs: Runs) -> None:
    """The reference under all calls is equal; a cached run costs its share. The pipeline is as before."""
    runs.reference(FIRST)
    full, few = (runs.score(FIRST, Auto(max_calls=calls)) for calls in (8, 3))
    assert (full.psnr, full.calls) == (99.0, 8)
    assert (few.calls, few.psnr < 99) == (3, True)
    assert runs.generations == 1 + 1 + 3 / 8
    assert find(runs.pipe) is None


def test_a_torn_file_is_no_run(runs: Runs) -> None:
    """What a killed profiler left half written isn't read."""
    runs.score(FIRST, Auto(max_calls=3))
    for file in runs.folder.glob("*.json"):
        file.rename(file.with_name(f"{file.name}.draft"))
    score = runs.score(FIRST, Auto(max_calls=3))
    assert score.calls == 3
    assert not list(runs.folder.glob("*.draft"))


def test_one_profiler_at_a_time(runs: Runs, tmp_path: Path) -> None:
    """A second one of the same model and arguments is told so; of others it isn't in the way."""
    with runs.locked():
        with (
            pytest.raises(InvalidRequest, match="another profiler is at work"),
            Runs(runs.pipe, ARGUMENTS, tmp_path).locked(),
        ):
            pass
        with Runs(runs.pipe, {**ARGUMENTS, "guidance_scale": 2.0}, tmp_path).locked():
            pass
    with runs.locked():
        pass


def test_noise_is_harmless(runs: Runs) -> None:
    """Nearly the same video, and not the reference itself; the pipeline is as before."""
    prepare = runs.pipe.prepare_latents
    noise = runs.noise(FIRST)
    assert noise.psnr > 40
    assert runs.pipe.prepare_latents == prepare
    with perturbed(runs.pipe, 0.5):
        assert runs.pipe.prepare_latents != prepare


def test_a_pipeline_that_is_cached_already_is_refused(pipe: Any, tmp_path: Path) -> None:
    """Its runs wouldn't be the model's own; one without a transformer can't be profiled either."""
    from warpcache_ray import disable_dit_cache, enable_dit_cache

    enable_dit_cache(pipe, "never")
    with pytest.raises(InvalidRequest, match="the cache is on"):
        Runs(pipe, ARGUMENTS, tmp_path)
    disable_dit_cache(pipe)
    with pytest.raises(InvalidRequest, match="has no transformer"):
        Runs(object(), ARGUMENTS, tmp_path)


def test_the_folder_is_the_keys(pipe: Any, tmp_path: Path) -> None:
    """Other sizes, weights or precision: other runs."""
    runs = Runs(pipe, ARGUMENTS, tmp_path)
    assert runs.key == policy_key(pipe, ARGUMENTS)
    assert Runs(pipe, {**ARGUMENTS, "height": 48}, tmp_path).folder != runs.folder
    pipe.to(torch.bfloat16)
    other = Runs(pipe, ARGUMENTS, tmp_path)
    assert (other.key, other.folder != runs.folder) == (runs.key, True)
