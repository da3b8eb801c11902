"""`auto` on the tiny models, through pipelines and the engine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, DPMSolverMultistepScheduler, FlowMatchHeunDiscreteScheduler
from torch import Tensor

from warpcache_ray import dit_cache_stats, enable_dit_cache
from warpcache_ray.core.types import Step
from warpcache_ray.engine.engine import Engine
from warpcache_ray.engine.events import Generation
from warpcache_ray.engine.fingerprints import fingerprint
from warpcache_ray.engine.install import find
from warpcache_ray.errors import GenerationFailed, InvalidPolicy
from warpcache_ray.policy_spec import parse_policy

Run = Callable[..., Tensor]

AUTO = parse_policy("auto", max_calls=3)


@pytest.fixture
def wan(folders: dict[str, Path]) -> Any:
    """A fresh pipeline that calls two branches per step."""
    pipe = DiffusionPipeline.from_pretrained(folders["wan"])
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _request(seed: int = 0, **changes: Any) -> Generation:
    shape = {"height": 32, "width": 32, "num_frames": 9, "num_inference_steps": 8}
    return Generation(prompt="a cat runs", seed=seed, **{**shape, **changes})


def _steps(pipe: Any) -> list[Step]:
    """Fills with the step of each denoiser call, as the policies see it."""
    installation = find(pipe)
    assert installation is not None
    clock, told = installation._clock, []

    class Watched:
        runs = property(lambda self: clock.runs)

        def tick(self, *args: Any, **kwargs: Any) -> Step:
            told.append(clock.tick(*args, **kwargs))
            return told[-1]

    installation._clock = Watched()  # type: ignore[assignment]
    return told


def test_the_engine_runs_it(model: str, folders: dict[str, Path]) -> None:
    """As many calls as allowed, the same latents every time, others than without, and all steps are told."""
    engine = Engine.load(folders[model])
    results = [engine.generate(_request(), AUTO) for _ in range(2)]
    calls = {r.step for r in results[0].stats.records if not r.decision.skips}
    assert len(calls) == 3
    assert results[0].latents_sha256 == results[1].latents_sha256
    plain = engine.generate(_request(), parse_policy("never"))
    assert results[0].latents_sha256 != plain.latents_sha256
    assert engine.store.nbytes == 0


@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_skips_as_any(pipe: Any, latents: Run, autocast: bool) -> None:
    """Under autocast too, where outputs have another dtype than latents."""
    if not autocast:
        pipe.to(torch.bfloat16)
    enable_dit_cache(pipe, AUTO)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        assert latents(pipe).isfinite().all()
    assert len({r.step for r in dit_cache_stats(pipe).records if r.blocks_run}) == 3


def test_all_steps_are_plain_diffusers(pipe: Any, latents: Run) -> None:
    """A budget for all of them gives the uncached latents, bit for bit."""
    plain = latents(pipe)
    enable_dit_cache(pipe, "auto", max_calls=8)
    assert torch.equal(latents(pipe), plain)


def test_branches_keep_apart(wan: Any, latents: Run) -> None:
    """Both are computed at the same steps, and each is given what its own outputs foretell."""
    enable_dit_cache(wan, AUTO)
    installation = find(wan)
    assert installation is not None
    with installation.session(AUTO) as session:
        latents(wan)
        states = {where.branch: state for where, state in session.states.items()}
    records = session.stats.records
    steps = {b: [r.step for r in records if r.branch == b and r.blocks_run] for b in states}
    assert steps["cond"] == steps["uncond"]
    assert states["cond"].latest is not None
    assert states["uncond"].latest is not None
    assert not torch.equal(states["cond"].latest.residual, states["uncond"].latest.residual)
    assert states["uncond"].latest.peer is states["cond"].latest.residual


def test_guidance_is_known_where_there_are_two_branches(
    pipe: Any, latents: Run, model: str
) -> None:
    """A distilled scale, HunyuanVideo's, weighs no second branch; Cosmos' counts from cond."""
    enable_dit_cache(pipe, AUTO)
    told = _steps(pipe)
    latents(pipe, guidance_scale=5.0)
    scale = {"wan": 5.0, "hunyuan": None, "cosmos": 6.0}[model]
    courses = [step.course for step in told]
    assert {c.guidance for c in courses if c} == {scale}
    assert len(courses) == (16 if scale else 8)


def test_each_expert_has_its_guidance(two_experts: Any, latents: Run) -> None:
    """The switch is a recompute of both branches, and the second expert's own scale counts."""
    enable_dit_cache(two_experts, AUTO)
    told = _steps(two_experts)
    latents(two_experts, guidance_scale=5.0, guidance_scale_2=2.0)
    records = dit_cache_stats(two_experts).records
    second = [r for r in records if r.transformer == "transformer_2"]
    assert 0 < len(second) < len(records)
    switch = [r for r in second if r.step == second[0].step]
    assert [r.decision.skips for r in switch] == [False, False]
    assert any(r.decision.skips for r in second)
    scales = {
        (r.transformer, step.course.guidance)
        for r, step in zip(records, told, strict=True)
        if step.course
    }
    assert scales == {("transformer", 5.0), ("transformer_2", 2.0)}


def test_no_gap_reaches_into_the_second_expert(two_experts: Any, latents: Run) -> None:
    """What the first expert foretells last ends where the other takes over."""
    enable_dit_cache(two_experts, AUTO)
    installation = find(two_experts)
    assert installation is not None
    with installation.session(AUTO) as session:
        latents(two_experts, guidance_scale=5.0)
        memos = dict(session.memos)
    records = session.stats.records
    switch = next(r.step for r in records if r.transformer == "transformer_2")
    assert memos["transformer"].step < switch - 1
    assert memos["transformer"].next == switch
    assert memos["transformer_2"].next > switch


def test_another_scheduler_is_another_plan(wan: Any, latents: Run) -> None:
    """Weights are those of the scheduler at work, also where its noise levels are those of the one before."""
    enable_dit_cache(wan, AUTO)
    told = _steps(wan)
    latents(wan)
    config = dict(wan.scheduler.config)
    order = 1 if config["solver_order"] == 2 else 2
    wan.scheduler = type(wan.scheduler).from_config({**config, "solver_order": order})
    latents(wan)
    courses = list(dict.fromkeys(step.course for step in told))
    assert len(courses) == 2
    assert courses[0].sigmas == courses[1].sigmas
    assert courses[0].weights != courses[1].weights


def test_solvers_that_cannot_be_planned_compute_all(wan: Any, latents: Run) -> None:
    """Heun evaluates twice at a noise level, a stochastic solver isn't linear: no skip, plain output."""
    config = dict(wan.scheduler.config)
    noisy = DPMSolverMultistepScheduler.from_config(config, algorithm_type="sde-dpmsolver++")
    for scheduler in (FlowMatchHeunDiscreteScheduler(shift=3.0), noisy):
        wan.scheduler = scheduler
        # The noise comes from the global generator: this pipeline doesn't hand its own on.
        torch.manual_seed(0)
        plain = latents(wan)
        enable_dit_cache(wan, AUTO)
        torch.manual_seed(0)
        assert torch.equal(latents(wan), plain)
        reasons = {r.decision.reason for r in dit_cache_stats(wan).records}
        assert reasons == {"unknown solver"}
        find(wan).remove()  # type: ignore[union-attr]


def test_another_shape_computes_all(pipe: Any, latents: Run) -> None:
    """The shape is that of a latent: channels, frames, rows, columns."""
    enable_dit_cache(pipe, "auto", max_calls=3, shape=tuple(latents(pipe).shape[1:]))
    latents(pipe)
    assert dit_cache_stats(pipe).hits > 0
    latents(pipe, height=48)
    stats = dit_cache_stats(pipe)
    assert {r.decision.reason for r in stats.records} == {"calibrated for another shape"}
    assert stats.hits == 0


def test_another_model_is_refused(pipe: Any) -> None:
    """The refusal names both fingerprints; the own one is taken."""
    own = fingerprint(pipe.transformer)
    with pytest.raises(InvalidPolicy, match=f"calibrated on Other-123, this is {own}") as caught:
        enable_dit_cache(pipe, "auto", model="Other-123")
    assert caught.value.param == "policy.model"
    assert find(pipe) is None
    enable_dit_cache(pipe, "auto", model=own)


def test_eviction_in_mid_run_recomputes(wan: Any, latents: Run) -> None:
    """A run whose states are taken away goes on, and skips again afterwards."""
    enable_dit_cache(wan, "auto", max_calls=2)
    installation = find(wan)
    assert installation is not None
    with installation.session(installation.policy, "a") as session:

        def invalidate(pipe: Any, index: int, *_: Any) -> dict[str, Any]:
            if index == 1:
                assert installation.store.invalidate("a") == 1
            return {}

        final = latents(wan, callback_on_step_end=invalidate)
    reasons = [r.decision.reason for r in session.stats.records if r.step == 2]
    assert reasons == ["no state", "as the branch before"]
    assert any(r.decision.skips for r in session.stats.records if r.step > 2)
    assert final.isfinite().all()


@pytest.mark.parametrize("policy", ["auto", "never"])
def test_latents_that_are_not_finite_fail(
    model: str, folders: dict[str, Path], policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A denoiser that gives nan ends as a typed failure before anything is decoded, whatever was skipped since."""
    engine = Engine.load(folders[model])
    block = engine.pipeline.transformer.proj_out
    calls: list[int] = []

    def spoil(module: Any, args: Any, output: Tensor) -> Tensor:
        calls.append(1)
        return output * (torch.nan if len(calls) == 2 else 1.0)

    handle = block.register_forward_hook(spoil)
    with monkeypatch.context() as patch:
        patch.setattr(engine.pipeline.vae, "decode", lambda *a, **k: pytest.fail("decoded"))
        with pytest.raises(GenerationFailed, match="final latents aren't finite"):
            engine.generate(_request(), parse_policy(policy))
    handle.remove()
    assert len(calls) >= 2
    assert engine.store.nbytes == 0
    assert engine.generate(_request(), parse_policy(policy)).latents.isfinite().all()


def test_a_request_can_be_forgotten(folders: dict[str, Path]) -> None:
    """The engine's session goes by the name that its caller gave it."""
    engine = Engine.load(folders["wan"])
    found: list[int] = []

    def on_step(event: Any) -> Any:
        from warpcache_ray.engine.events import Control

        if event.index == 2:
            found.extend(engine.store.invalidate(name) for name in ("other", "job_1"))
        return Control()

    result = engine.generate(_request(), parse_policy("interval", every=8), on_step, "job_1")
    assert found == [0, 1]
    assert [r.decision.reason for r in result.stats.records if r.step == 3] == ["no state"] * 2
