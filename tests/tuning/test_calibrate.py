from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FlowMatchHeunDiscreteScheduler, WanImageToVideoPipeline

from warpcache_ray import disable_dit_cache, dit_cache_stats, enable_dit_cache
from warpcache_ray.engine.fingerprints import fingerprint
from warpcache_ray.engine.install import find
from warpcache_ray.errors import InvalidPolicy, InvalidRequest
from warpcache_ray.tuning import calibrate, load_policy, save_policy
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


def _calibrated(pipe: Any, calls: Any, **wanted: Any) -> Any:
    return calibrate(pipe, calls, progress=False, **wanted)


def test_it_is_calibrated_on_this_model(pipe: Any, tmp_path: Path) -> None:
    """The policy knows model, shape, steps and budget, survives a file, and is kept to; the pipe is as before."""
    calls = _calls("a cat", "a dog")
    policy = _calibrated(pipe, calls, max_calls=3)
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
    first = _calibrated(pipe, calls, max_calls=3)
    torch.manual_seed(99)
    assert _calibrated(pipe, calls, max_calls=3) == first
    assert torch.equal(generator.get_state(), before)


def test_nothing_given_counts_as_nothing(pipe: Any) -> None:
    """`generator=None` is seeded as a call without one."""
    plain = _calibrated(pipe, _calls("a cat"), max_calls=3)
    assert _calibrated(pipe, _calls("a cat", generator=None), max_calls=3) == plain


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
    policy = _calibrated(pipe, [call], max_calls=3)
    assert policy == _calibrated(pipe, [call], max_calls=3)
    assert policy == _calibrated(pipe, _calls("a cat", latents=latents), max_calls=3)
    assert torch.equal(latents, kept)


@pytest.mark.parametrize(
    ("wanted", "calls", "told", "param"),
    [
        ({}, [], "calls: give at least one", "calls"),
        ({"max_calls": 0}, None, "max_calls: 0 is not allowed", "policy.max_calls"),
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
        _calibrated(pipe, made, **wanted)
    assert caught.value.param == param
    assert find(pipe) is None


def test_heun_cannot_be_planned(two_experts: Any) -> None:
    """A solver that evaluates twice at a noise level is refused by name."""
    pipe = two_experts
    pipe.transformer_2 = None
    pipe.register_to_config(boundary_ratio=None)
    pipe.scheduler = FlowMatchHeunDiscreteScheduler(shift=3.0)
    with pytest.raises(InvalidRequest, match="unknown solver"):
        _calibrated(pipe, _calls("a cat"), max_calls=3)


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
    enable_dit_cache(i2v, _calibrated(i2v, calls, max_calls=3))
    run(i2v, {**calls[0], "generator": torch.Generator().manual_seed(0)})
    assert len({r.step for r in dit_cache_stats(i2v).records if not r.decision.skips}) == 3
