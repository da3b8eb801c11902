"""Going on from a checkpoint is as if the run had never stopped."""

from __future__ import annotations

from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler

import warpcache_ray
from warpcache_ray.engine.checkpoint import Checkpoint
from warpcache_ray.engine.engine import Engine
from warpcache_ray.engine.events import Control, Generation, Result, StepEvent
from warpcache_ray.errors import Cancelled, InvalidRequest
from warpcache_ray.policy_spec import parse_policy
from warpcache_ray.quality.fidelity import psnr

STEPS = 8
TOYWORLD = Path(warpcache_ray.__file__).parent / "toyworld" / "wan"
NEVER = parse_policy("never")


def _request(**changes: Any) -> Generation:
    size = {"height": 32, "width": 32, "num_frames": 9, "num_inference_steps": STEPS}
    return Generation(prompt="a cat runs", seed=3, **{**size, **changes})


def _stopped(engine: Engine, at: int, policy: Any = NEVER, **resuming: Any) -> Checkpoint:
    """A run that is cancelled after `at` steps, and the checkpoint of that moment, as it comes out of storage."""
    kept: list[bytes] = []

    def on_step(event: StepEvent) -> Control:
        if event.index + 1 == at:
            assert event.checkpoint is not None
            kept.append(event.checkpoint().to_bytes())
        return Control(cancel=event.index + 1 == at)

    with pytest.raises(Cancelled):
        engine.generate(_request(), policy, on_step, **resuming)
    return Checkpoint.from_bytes(kept[0])


@pytest.fixture(scope="module", params=["wan", "hunyuan", "cosmos", "wan euler", "wan dpm++"])
def folder(request: pytest.FixtureRequest, folders: dict[str, Path]) -> tuple[Path, Any]:
    """Two models with UniPC, two with Euler, one with DPM++."""
    name, _, solver = request.param.partition(" ")
    kinds = {"euler": FlowMatchEulerDiscreteScheduler(shift=3.0)}
    kinds["dpm++"] = DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    return folders[name], kinds.get(solver)


def _engine(folder: tuple[Path, Any]) -> Engine:
    engine = Engine.load(folder[0])
    if folder[1] is not None:
        engine.pipeline.scheduler = type(folder[1]).from_config(folder[1].config)
    return engine


@pytest.mark.parametrize("at", [1, 2, 5, STEPS - 1])
def test_an_uncached_run_ends_with_the_same_bytes(folder: tuple[Path, Any], at: int) -> None:
    """Taken up after any step, by a process that knows nothing of the first: same latents, same frames."""
    whole = _engine(folder).generate(_request(), NEVER)
    checkpoint = _stopped(_engine(folder), at)
    steps: list[tuple[int, int]] = []

    def on_step(event: StepEvent) -> Control:
        steps.append((event.index, event.total))
        return Control()

    rest = _engine(folder).generate(_request(), NEVER, on_step, checkpoint=checkpoint)
    assert rest.latents_sha256 == whole.latents_sha256
    np.testing.assert_array_equal(rest.frames, whole.frames)
    assert steps == [(index, STEPS) for index in range(at, STEPS)]
    assert rest.resumed_at == at


def test_a_resumed_run_can_be_resumed(folder: tuple[Path, Any]) -> None:
    """Twice stopped, the end is the same; and the engine makes whole runs afterwards."""
    engine = _engine(folder)
    whole = engine.generate(_request(), NEVER).latents_sha256
    first = _stopped(engine, 2)
    second = _stopped(engine, 5, checkpoint=first)
    assert (second.step, second.total) == (5, STEPS)
    assert engine.generate(_request(), NEVER, checkpoint=second).latents_sha256 == whole
    assert engine.generate(_request(), NEVER).latents_sha256 == whole


@pytest.mark.parametrize(
    "policy",
    [
        parse_policy("first_block", threshold=10.0, max_skips=2),
        parse_policy("worldcache", threshold=0.5),
        parse_policy("auto", max_calls=4),
    ],
    ids=lambda policy: policy.name,
)
def test_a_cached_run_recomputes_first(folder: tuple[Path, Any], policy: Any) -> None:
    """Its states are gone, so its first step is computed; then it skips again, at the places of the whole schedule."""
    engine = _engine(folder)
    rest = engine.generate(_request(), policy, checkpoint=_stopped(engine, 3, policy))
    records = rest.stats.records
    assert [r.step for r in records if r.branch == "cond"] == list(range(3, STEPS))
    assert not any(r.decision.skips for r in records if r.step == 3)
    assert any(r.decision.skips for r in records)


def test_auto_keeps_its_quality() -> None:
    """On the trained model: a run taken up in its middle is no further from the uncached one than one in one piece."""
    engine = Engine.load(TOYWORLD)
    ask = Generation(
        "a red circle moving right slow over a blue background",
        seed=5,
        height=64,
        width=64,
        num_frames=17,
        num_inference_steps=20,
        guidance_scale=4.0,
    )
    policy = parse_policy("auto", max_calls=8)
    kept: list[Checkpoint] = []

    def on_step(event: StepEvent) -> Control:
        if event.index == 6:
            kept.append(event.checkpoint())
        return Control()

    exact: Result = engine.generate(ask, NEVER)
    once = engine.generate(ask, policy, on_step)
    resumed = engine.generate(ask, policy, checkpoint=kept[0])
    assert psnr(resumed.frames, exact.frames) > psnr(once.frames, exact.frames) - 1.0
    assert resumed.stats.hits > 0


def test_a_video_of_two_runs_goes_on_in_its_first(folders: dict[str, Path]) -> None:
    """What was made before is of the first run alone: the second one is whole, and offers no checkpoint of its own."""
    engine = Engine.load(folders["wan"])
    once = type(engine.pipeline)

    class Twice(once):  # type: ignore[misc,valid-type]
        @wraps(once.__call__)
        def __call__(self, **arguments: Any) -> Any:
            super().__call__(**arguments)
            return super().__call__(**arguments)

    engine.pipeline.__class__ = Twice
    offered: list[bool] = []

    def on_step(event: StepEvent) -> Control:
        offered.append(event.checkpoint is not None)
        return Control()

    whole = engine.generate(_request(), NEVER, on_step)
    assert offered == [True] * STEPS + [False] * STEPS
    again = engine.generate(_request(), NEVER, checkpoint=_stopped(engine, 3))
    assert again.latents_sha256 == whole.latents_sha256


def test_what_is_no_checkpoint_is_refused(folders: dict[str, Path]) -> None:
    """Other bytes, and another number of steps: a clear error, and nothing stays patched."""
    with pytest.raises(InvalidRequest, match="checkpoint: not one of ours"):
        Checkpoint.from_bytes(b"junk")
    engine = Engine.load(folders["wan"])
    checkpoint = _stopped(engine, 2)
    with pytest.raises(InvalidRequest, match="of 8 steps, the run has 6"):
        engine.generate(_request(num_inference_steps=6), NEVER, checkpoint=checkpoint)
    assert engine.generate(_request(), NEVER).resumed_at == 0
