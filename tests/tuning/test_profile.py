from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchHeunDiscreteScheduler, WanImageToVideoPipeline

from warpcache_ray import disable_dit_cache, dit_cache_stats, enable_dit_cache
from warpcache_ray.engine.fingerprints import fingerprint
from warpcache_ray.engine.install import find
from warpcache_ray.errors import InvalidPolicy, InvalidRequest
from warpcache_ray.tuning import load_policy, profile, save_policy
from warpcache_ray.tuning.record import run

CALL = {
    "height": 32,
    "width": 32,
    "num_frames": 9,
    "num_inference_steps": 8,
    "max_sequence_length": 16,
    "output_type": "latent",
}


def _calls(*prompts: str, **changes: Any) -> list[dict[str, Any]]:
    return [{**CALL, "prompt": prompt, **changes} for prompt in prompts]


def _profile(pipe: Any, calls: Any, **wanted: Any) -> Any:
    return profile(pipe, calls, progress=False, **wanted)


def test_it_is_calibrated_on_this_model(pipe: Any, tmp_path: Path) -> None:
    """The policy knows model, shape, steps and budget, survives a file, and is kept to; the pipe is as before."""
    calls = _calls("a cat", "a dog")
    policy = _profile(pipe, calls, max_calls=3)
    assert find(pipe) is None
    assert (policy.model, policy.max_calls) == (fingerprint(pipe.transformer), 3)
    assert len(policy.gram.sigmas) == 8
    path = tmp_path / "policy.json"
    save_policy(policy, path)
    assert load_policy(path) == policy
    enable_dit_cache(pipe, load_policy(path))
    final = run(pipe, {**calls[0], "generator": torch.Generator().manual_seed(0)})
    assert final.shape[1:] == policy.shape
    stats = dit_cache_stats(pipe)
    assert len({r.step for r in stats.records if not r.decision.skips}) == 3
    disable_dit_cache(pipe)


def test_the_same_calls_give_the_same_policy(pipe: Any) -> None:
    """Whatever the global generator's state; one in a call isn't consumed."""
    generator = torch.Generator().manual_seed(7)
    calls = [*_calls("a cat"), *_calls("a dog", generator=generator)]
    before = generator.get_state()
    first = _profile(pipe, calls, target_psnr=30.0)
    torch.manual_seed(99)
    assert _profile(pipe, calls, target_psnr=30.0) == first
    assert torch.equal(generator.get_state(), before)


def test_nothing_given_counts_as_nothing(pipe: Any) -> None:
    """`generator=None` is seeded as a call without one."""
    plain = _profile(pipe, _calls("a cat"), max_calls=3)
    assert _profile(pipe, _calls("a cat", generator=None), max_calls=3) == plain


def test_any_output_can_be_judged(pipe: Any, model: str) -> None:
    """Latents as they are, latents decoded by the caller, pixels as arrays (Cosmos' guardrail gives them back rounded)
    or images: each is measured."""

    def decode(latents: Any) -> Any:
        return (latents[0].permute(1, 2, 3, 0) * 20 + 128).clamp(0, 255).to(torch.uint8)

    def rounded(frames: Any) -> Any:
        return (frames * 255).round().astype(np.uint8)

    def level(output: str, decoder: Any = None) -> float:
        calls = _calls("a cat", output_type=output)
        found: float = _profile(pipe, calls, max_calls=3, decode=decoder).level
        return found

    levels = [level("latent"), level("latent", decode), level("np"), level("np", rounded)]
    assert np.isfinite(levels).all()
    assert len(set(levels)) == (3 if model == "cosmos" else 4)
    assert level("pil") == levels[3]


def test_embeddings_and_latents_may_be_given(pipe: Any) -> None:
    """As arguments of the pipeline, like any others."""
    device = torch.device("cpu")
    shape = pipe(**_calls("a cat")[0], generator=torch.Generator().manual_seed(0)).frames.shape
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    kept = latents.clone()
    if type(pipe).__name__ != "HunyuanVideoPipeline":
        with torch.no_grad():
            both = pipe.encode_prompt("a cat", "", device=device, max_sequence_length=16)
        positive, negative = both
        given = {"prompt_embeds": positive, "negative_prompt_embeds": negative}
    else:
        with torch.no_grad():
            found = pipe.encode_prompt("a cat", device=device, max_sequence_length=16)
        embeds, pooled, mask = found
        given = {
            "prompt_embeds": embeds,
            "pooled_prompt_embeds": pooled,
            "prompt_attention_mask": mask,
        }
    call = {**CALL, **given, "latents": latents}
    policy = _profile(pipe, [call], max_calls=3)
    assert policy == _profile(pipe, [call], max_calls=3)
    assert policy == _profile(pipe, _calls("a cat", latents=latents), max_calls=3)
    assert torch.equal(latents, kept)


def test_a_budget_of_all_steps_has_a_level(pipe: Any) -> None:
    """No expected error at all is no error."""
    policy = _profile(pipe, _calls("a cat"), max_calls=8)
    assert np.isfinite(policy.level)


def test_a_higher_target_computes_more(pipe: Any) -> None:
    """The target is the caller's, and the level that it is compared with is measured."""
    counts = []
    for target in (15.0, 90.0):
        policy = _profile(pipe, _calls("a cat"), target_psnr=target)
        assert policy.target_psnr == target
        enable_dit_cache(pipe, policy)
        run(pipe, {**_calls("a cat")[0], "generator": torch.Generator().manual_seed(0)})
        counts.append(dit_cache_stats(pipe).recomputed)
        disable_dit_cache(pipe)
    assert counts[0] < counts[1]


@pytest.mark.parametrize(
    ("wanted", "calls", "told", "param"),
    [
        ({}, [], "calls: give at least one", "calls"),
        ({"max_calls": 0}, None, "max_calls: 0 is not allowed", "policy.max_calls"),
        ({"target_psnr": -3.0}, None, "target_psnr: -3.0 is not allowed", "policy.target_psnr"),
        ({"max_calls": 3, "target_psnr": 30.0}, None, "target_psnr: 30.0", "policy.target_psnr"),
        ({"share": 1.0, "target_psnr": 30.0}, None, "share: 1.0 is not allowed", "share"),
        ({}, [{"num_inference_steps": 4}], "few steps.*5 or more", "calls"),
        ({}, [{}, {"num_inference_steps": 6}], "same steps, guidance and shape", "calls"),
        ({}, [{}, {"height": 48}], "same steps, guidance and shape", "calls"),
    ],
    ids=str,
)
def test_bad_inputs_are_named(
    folders: dict[str, Path], wanted: Any, calls: Any, told: str, param: str, two_experts: Any
) -> None:
    """Each refusal says which argument it is about, and the cache is off after it."""
    pipe = two_experts
    pipe.transformer_2 = None
    pipe.register_to_config(boundary_ratio=None)
    changes = [{}] if calls is None else calls
    made = [{**_calls("a cat")[0], **change} for change in changes]
    with pytest.raises(InvalidRequest, match=told) as caught:
        _profile(pipe, made, **wanted)
    assert caught.value.param == param
    assert find(pipe) is None


def test_heun_cannot_be_planned(two_experts: Any) -> None:
    """A solver that evaluates twice at a noise level is refused by name."""
    pipe = two_experts
    pipe.transformer_2 = None
    pipe.register_to_config(boundary_ratio=None)
    pipe.scheduler = FlowMatchHeunDiscreteScheduler(shift=3.0)
    with pytest.raises(InvalidRequest, match="unknown solver"):
        _profile(pipe, _calls("a cat"), max_calls=3)


def test_a_file_with_a_broken_matrix_is_refused(tmp_path: Path) -> None:
    """The message names file and field."""
    path = tmp_path / "policy.json"
    gram = {"sigmas": [1.0, 0.5], "products": [1.0, 2.0], "branches": ["cond"]}
    path.write_text(json.dumps({"name": "auto", "gram": gram}))
    with pytest.raises(InvalidPolicy, match=r"policy.json.*gram.*products: 2 .*3 numbers"):
        load_policy(path)


@pytest.mark.parametrize("model", ["wan"])
def test_image_to_video_is_calibrated_too(pipe: Any) -> None:
    """A transformer that sees more channels than it gives (noise, mask and first frame) still skips."""
    wan = type(pipe.transformer)
    config = {**pipe.transformer.config, "in_channels": 12}
    torch.manual_seed(0)
    i2v = WanImageToVideoPipeline(
        pipe.tokenizer,
        pipe.text_encoder,
        pipe.vae,
        pipe.scheduler,
        transformer=wan.from_config(config),
    )
    i2v.set_progress_bar_config(disable=True)
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    calls = _calls("a cat", image=image)
    enable_dit_cache(i2v, _profile(i2v, calls, max_calls=3))
    run(i2v, {**calls[0], "generator": torch.Generator().manual_seed(0)})
    assert len({r.step for r in dit_cache_stats(i2v).records if not r.decision.skips}) == 3
