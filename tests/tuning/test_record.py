from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from warpcache_ray import disable_dit_cache, enable_dit_cache
from warpcache_ray.errors import InvalidRequest
from warpcache_ray.models.seam import observer_of
from warpcache_ray.tuning.record import record, run

Run = Callable[..., Tensor]
CALL = {
    "prompt": "a cat",
    "height": 32,
    "width": 32,
    "num_frames": 9,
    "num_inference_steps": 6,
    "max_sequence_length": 16,
    "output_type": "latent",
}


def _call(**changes: Any) -> dict[str, Any]:
    return {**CALL, "generator": torch.Generator().manual_seed(3), **changes}


def test_a_recording_is_the_uncached_run(pipe: Any) -> None:
    """Its result is the pipeline's own, and the weighted outputs lead from the first latent to it."""
    start = torch.randn(1, 4, 3, 4, 4)
    recording = record(pipe, _call(latents=start))
    plain = pipe(**_call(latents=start)).frames
    assert torch.equal(recording.result, plain)
    assert observer_of(pipe.transformer) is None
    course = recording.course
    assert course is not None
    assert course.weights is not None
    guided = recording.outputs["cond"]
    if course.guidance is not None:
        pairs = zip(guided, recording.outputs["uncond"], strict=True)
        guided = [u + course.guidance * (c - u) for c, u in pairs]
    moved = sum(w * g for w, g in zip(course.weights, guided, strict=True))
    torch.testing.assert_close(start + moved, plain, atol=2e-4, rtol=1e-3)


def test_it_holds_all_outputs_of_all_branches(pipe: Any) -> None:
    """In order of the steps; the Gram matrix has their products."""
    recording = record(pipe, _call())
    guided = type(pipe).__name__ != "HunyuanVideoPipeline"
    assert recording.branches == (("cond", "uncond") if guided else ("cond",))
    assert {len(outputs) for outputs in recording.outputs.values()} == {6}
    assert recording.shape == tuple(recording.result.shape[1:])
    matrix = recording.gram()
    assert matrix.shape == (6 * len(recording.branches),) * 2
    last, first = recording.outputs[recording.branches[-1]][-1], recording.outputs["cond"][0]
    expected = float((last.double() * first.double()).mean())
    assert float(matrix[-1, 0]) == pytest.approx(expected, rel=1e-6)


def test_generators_are_not_consumed(pipe: Any) -> None:
    """One alone or one per video: the same call gives the same run again."""
    call = _call(prompt=["a cat", "a dog"])
    call["generator"] = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    for arguments in (_call(), call):
        assert torch.equal(run(pipe, arguments), run(pipe, arguments))


def test_what_cannot_be_recorded_is_refused(pipe: Any, two_experts: Any) -> None:
    """A cache that is on, two transformers: the message says which; nothing stays attached after a failure."""
    enable_dit_cache(pipe)
    with pytest.raises(InvalidRequest, match="the cache is on") as caught:
        record(pipe, _call())
    assert caught.value.param == "pipe"
    disable_dit_cache(pipe)
    with pytest.raises(InvalidRequest, match="two transformers"):
        record(two_experts, _call())
    with pytest.raises(ValueError, match="divisible by 16"):
        record(pipe, _call(height=20))
    assert observer_of(pipe.transformer) is None


@pytest.mark.parametrize("model", ["wan", "hunyuan"])
def test_batched_branches_are_refused(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipeline that says that it calls cond and uncond at once has no outputs of each."""
    context = pipe.transformer.cache_context
    monkeypatch.setattr(
        pipe.transformer, "cache_context", lambda name, **said: context("cond_uncond", **said)
    )
    with pytest.raises(InvalidRequest, match="calls the branches cond_uncond; cond, or cond and"):
        record(pipe, _call())
