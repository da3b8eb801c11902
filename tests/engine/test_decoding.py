"""The device's memory runs out: in the decoder, in the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline

from warpcache_ray.engine.engine import Engine
from warpcache_ray.engine.events import Generation
from warpcache_ray.engine.ranks import OneRank
from warpcache_ray.errors import OutOfMemory
from warpcache_ray.policy_spec import parse_policy

EAGER = parse_policy("first_block", threshold=10.0, max_skips=2)


def _request() -> Generation:
    return Generation("a cat", 0, height=32, width=32, num_frames=9, num_inference_steps=4)


@pytest.fixture
def engine(model: str, folders: dict[str, Path]) -> Engine:
    return Engine.load(folders[model])


def _fails_once(monkeypatch: pytest.MonkeyPatch, target: Any, name: str) -> list[Any]:
    """The method runs out of memory at its first call; what it was called on, and whether in tiles."""
    method, calls = getattr(target, name), []

    def once(*args: Any, **kwargs: Any) -> Any:
        calls.append((args, getattr(target, "use_tiling", None)))
        if len(calls) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")
        return method(*args, **kwargs)

    monkeypatch.setattr(target, name, once)
    return calls


def test_the_decoder_tries_again_in_tiles(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the same latents, without another step; and the next video is decoded whole again."""
    clean = engine.generate(_request(), EAGER)
    with monkeypatch.context() as patch:
        calls = _fails_once(patch, engine.pipeline.vae, "_decode")
        result = engine.generate(_request(), EAGER)
        assert [tiled for _, tiled in calls] == [False, True]
        assert calls[0][0][0] is calls[1][0][0]
        assert result.tiled
        assert result.latents_sha256 == clean.latents_sha256
        assert result.frames.shape == clean.frames.shape
    again = engine.generate(_request(), EAGER)
    assert not again.tiled
    assert not engine.pipeline.vae.use_tiling
    np.testing.assert_array_equal(again.frames, clean.frames)


def test_a_decoder_too_large_for_tiles_ends_as_oom(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice out of memory is one typed failure, and tiling is off again."""

    def never(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(engine.pipeline.vae, "_decode", never)
        with pytest.raises(OutOfMemory, match="out of memory"):
            engine.generate(_request(), EAGER)
    assert not engine.pipeline.vae.use_tiling


def test_the_model_out_of_memory_fails_the_one_generation(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has its own code and isn't retried; nothing stays, and the next generation is as any."""
    clean = engine.generate(_request(), EAGER).latents_sha256
    with monkeypatch.context() as patch:
        _fails_once(patch, engine.pipeline.transformer.proj_out, "forward")
        with pytest.raises(OutOfMemory, match="9 GiB") as caught:
            engine.generate(_request(), EAGER)
    assert caught.value.to_dict() | {"message": ""} == {
        "message": "",
        "type": "OutOfMemory",
        "param": None,
        "code": "oom",
        "retryable": False,
    }
    assert engine.store.nbytes == 0
    assert engine.generate(_request(), EAGER).latents_sha256 == clean


def test_one_rank_decodes(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others end with the same latents and no frames."""
    clean = engine.generate(_request(), EAGER)
    monkeypatch.setattr(engine.pipeline.vae, "decode", lambda *a, **k: pytest.fail("decoded"))
    result = engine.generate(_request(), EAGER, decode=False)
    assert result.latents_sha256 == clean.latents_sha256
    assert result.frames.size == 0


class _Together(OneRank):
    decode_together = True


def test_ranks_that_decode_together_all_do(folders: dict[str, Path]) -> None:
    """One that isn't to keep the frames decodes as well; without, the others would wait for it."""
    engine = Engine(DiffusionPipeline.from_pretrained(folders["wan"]), _Together())
    calls = []
    decode = engine.pipeline.vae.decode
    engine.pipeline.vae.decode = lambda *a, **k: calls.append(a) or decode(*a, **k)
    result = engine.generate(_request(), EAGER, decode=False)
    assert (len(calls), result.frames.size) == (1, 0)


def test_ranks_that_decode_together_do_not_try_again(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In tiles, one alone would part from the others; the memory of one is the end for all."""
    engine = Engine(DiffusionPipeline.from_pretrained(folders["wan"]), _Together())
    calls = _fails_once(monkeypatch, engine.pipeline.vae, "_decode")
    with pytest.raises(OutOfMemory, match="9 GiB"):
        engine.generate(_request(), EAGER)
    assert len(calls) == 1
