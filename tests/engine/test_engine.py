from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from warpcache_ray.engine.engine import Engine
from warpcache_ray.engine.events import Control, Generation, StepEvent, latents_sha256
from warpcache_ray.errors import Cancelled, GenerationFailed, InvalidPolicy, InvalidRequest
from warpcache_ray.policy_spec import parse_policy

NEVER = parse_policy("never")
EACH_BLOCK = parse_policy("warpcache", preset="fast")
EAGER = parse_policy("first_block", threshold=10.0, max_skips=2)


def request(seed: int = 0, **changes: Any) -> Generation:
    shape = {"height": 32, "width": 32, "num_frames": 9, "num_inference_steps": 8}
    return Generation(prompt="a cat runs", seed=seed, **{**shape, **changes})


@pytest.fixture
def engine(model: str, folders: dict[str, Path]) -> Engine:
    return Engine.load(folders[model])


def test_never_gives_plain_diffusers_latents(
    engine: Engine, pipe: Any, latents: Callable[..., Tensor]
) -> None:
    """Through the engine, the same request has the fingerprint of an untouched pipeline."""
    longest = 256 if type(pipe).__name__ == "HunyuanVideoPipeline" else 512
    plain = latents(pipe, max_sequence_length=longest)
    assert engine.generate(request(), NEVER).latents_sha256 == latents_sha256(plain)


@pytest.mark.parametrize("policy", [EAGER, EACH_BLOCK], ids=["blocks", "layer"])
def test_events_tell_every_step(engine: Engine, policy: Any) -> None:
    """One event per step, in order, with all decisions that were made in it; the account grows with them."""
    events: list[StepEvent] = []

    def on_step(event: StepEvent) -> Control:
        events.append(event)
        return Control()

    result = engine.generate(request(), policy, on_step)
    assert [e.index for e in events] == list(range(8))
    assert {e.total for e in events} == {8}
    assert [r for e in events for r in e.decisions] == result.stats.records
    assert result.stats.hits > 0
    assert result.frames.dtype == np.uint8
    assert result.frames.shape == (9, 32, 32, 3)
    assert result.timings.denoise > 0


def test_cancel_ends_at_the_step_boundary(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """No step starts after the word, nothing is decoded, no state stays, and the next request is clean."""
    clean = engine.generate(request(), EAGER).latents_sha256
    steps: list[int] = []

    def on_step(event: StepEvent) -> Control:
        steps.append(event.index)
        return Control(cancel=event.index == 3)

    with monkeypatch.context() as patch:
        patch.setattr(engine.pipeline.vae, "decode", lambda *a, **k: pytest.fail("decoded"))
        with pytest.raises(Cancelled, match="step 4 of 8"):
            engine.generate(request(seed=3), EAGER, on_step)
    assert steps == [0, 1, 2, 3]
    assert engine.store.nbytes == 0
    assert engine.generate(request(), EAGER).latents_sha256 == clean


def test_a_refused_value_is_the_users(engine: Engine) -> None:
    """What the pipeline refuses before it starts is an invalid request, not a failure."""
    with pytest.raises(InvalidRequest, match="divisible by 16"):
        engine.generate(request(height=24), NEVER)


def test_a_model_that_raises_fails_the_generation(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error inside the denoiser ends as a typed failure, and the engine goes on."""
    clean = engine.generate(request(), EAGER).latents_sha256

    def explode(*_: Any, **__: Any) -> None:
        raise RuntimeError("device lost")

    with monkeypatch.context() as patch:
        patch.setattr(engine.pipeline.scheduler, "step", explode)
        with pytest.raises(GenerationFailed, match="device lost"):
            engine.generate(request(), EAGER)
    assert engine.generate(request(), EAGER).latents_sha256 == clean


def test_nothing_is_held_while_decoding(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The features are gone before the decoder, which needs the most memory, begins."""
    decode, held = engine.pipeline.vae.decode, []

    def watched(*args: Any, **kwargs: Any) -> Any:
        held.append(engine.store.nbytes)
        return decode(*args, **kwargs)

    monkeypatch.setattr(engine.pipeline.vae, "decode", watched)
    stats = engine.generate(request(), EAGER).stats
    assert held == [0]
    assert stats.peak_cache_bytes > 0


def test_a_model_without_adapter_is_served_uncached(
    pipe: Any, latents: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its output is plain diffusers', its steps are told, and any policy but `never` is refused."""
    longest = 256 if type(pipe).__name__ == "HunyuanVideoPipeline" else 512
    plain = latents_sha256(latents(pipe, max_sequence_length=longest))
    monkeypatch.setattr("warpcache_ray.models.ADAPTERS", {})
    engine, steps = Engine(pipe), []

    def on_step(event: StepEvent) -> Control:
        steps.append(event.index)
        return Control()

    assert engine.generate(request(), NEVER, on_step).latents_sha256 == plain
    assert steps == list(range(8))
    assert engine.info.blocks == 0
    with pytest.raises(InvalidPolicy, match="no adapter"):
        engine.generate(request(), EAGER)


def test_budget_too_small_for_one_session(engine: Engine) -> None:
    """A cache that may hold nothing never skips: the output is the uncached one."""
    engine.store.budget = 0
    result = engine.generate(request(), EAGER)
    assert result.stats.hits == 0
    assert result.latents_sha256 == engine.generate(request(), NEVER).latents_sha256
    assert engine.store.stats.evictions > 0


def test_info_matches_what_the_pipeline_accepts(engine: Engine) -> None:
    """The multiples told to the outside are those that the pipeline makes without adjusting."""
    info = engine.info
    assert info.blocks == 4
    size, frames = 2 * info.size_multiple, 1 + 2 * info.frame_multiple
    result = engine.generate(request(height=size, width=size, num_frames=frames), NEVER)
    assert result.frames.shape == (frames, size, size, 3)


def test_fingerprint_is_of_values_not_layout() -> None:
    """A transposed view and its copy have the same fingerprint; another value has another."""
    tensor = torch.arange(6.0).reshape(2, 3)
    assert latents_sha256(tensor.T) == latents_sha256(tensor.T.contiguous())
    assert latents_sha256(tensor) != latents_sha256(tensor + 1)
