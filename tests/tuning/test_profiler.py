"""From a wish to a document, on a tiny model; and wishes that nothing can come of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from warpcache_ray import disable_dit_cache, dit_cache_stats, enable_dit_cache
from warpcache_ray.engine.fingerprints import identity, policy_key
from warpcache_ray.errors import InvalidRequest
from warpcache_ray.guarantee import Promise
from warpcache_ray.policy_document import Target, parse_document
from warpcache_ray.policy_spec import load_document, load_policy, save_policy
from warpcache_ray.tuning import Wish, profile_model
from warpcache_ray.tuning.runs import Request, Runs

ARGUMENTS = {
    "height": 32,
    "width": 32,
    "num_frames": 9,
    "num_inference_steps": 8,
    "max_sequence_length": 16,
}
LAX = Promise(0.5, 0.1)
"""Proven by four requests without a miss."""


@pytest.mark.parametrize("model", ["wan"])
def test_a_certified_policy_is_ready_to_use(pipe: Any, tmp_path: Path) -> None:
    """The document has key, promise and origin; its policy runs on this model, with the calls that it says."""
    prompts = [f"a cat number {i}" for i in range(7)]
    wish = Wish(Target("psnr", 12.0), LAX, count=3, fresh=4)
    document, profile = profile_model(pipe, prompts, ARGUMENTS, wish, tmp_path, progress=False)
    assert document.key == policy_key(pipe, ARGUMENTS)
    assert document.policy["model"] == identity(pipe.transformer)
    assert document.certified
    assert document.certificate is not None
    assert (document.certificate.requests, document.certificate.misses) == (4, 0)
    assert document.provenance["generations"] <= 12
    assert set(document.provenance["versions"]) >= {"warpcache-ray", "torch", "diffusers"}
    assert [t["calls"] for t in document.provenance["trials"]] == [
        t.score.calls for t in profile.trials
    ]
    assert parse_document(json.loads(json.dumps(document.to_dict()))) == document
    path = tmp_path / "policy.json"
    save_policy(document, path)
    assert load_document(path) == document
    enable_dit_cache(pipe, load_policy(path))
    pipe(prompt="a dog", **ARGUMENTS)
    assert dit_cache_stats(pipe).recomputed == 2 * document.expected["calls"]
    disable_dit_cache(pipe)


@pytest.mark.parametrize("model", ["wan"])
def test_without_a_certificate_it_is_an_estimate(pipe: Any, tmp_path: Path) -> None:
    """And what it says of quality comes from the search alone; a second profiler at that time is told to wait."""
    wish = Wish(Target("ssim", 0.5), count=2)
    with (
        Runs(pipe, ARGUMENTS, tmp_path).locked(),
        pytest.raises(InvalidRequest, match="another profiler"),
    ):
        profile_model(pipe, ["a cat", "a dog"], ARGUMENTS, wish, tmp_path, progress=False)
    document, profile = profile_model(
        pipe, ["a cat", "a dog"], ARGUMENTS, wish, tmp_path, progress=False
    )
    assert (document.certified, document.certificate) == (False, None)
    assert document.expected["share_kept"] >= 0.95
    assert document.expected["ssim"] >= 0.5
    assert document.expected["calls"] == profile.calls


def test_no_prompt_is_used_twice() -> None:
    """Prompts count once, seeds go on, and what is certified on wasn't calibrated on."""
    prompts = ["a", "b", "a", "c", "d", "e", "f"]
    first, fresh = Wish(Target("psnr", 30.0), LAX, count=2, fresh=4).requests(prompts)
    assert first == [Request("a", 0), Request("b", 1)]
    assert fresh == [Request(p, i) for i, p in enumerate("cdef", 2)]
    assert len(Wish(Target("psnr", 30.0)).requests(["a", "b", "c"])[0]) == 3


@pytest.mark.parametrize(
    ("target", "changes", "told", "param"),
    [
        (
            Target("psnr", 120.0),
            {},
            "target_psnr: 120 is not allowed; it must be above 0",
            "target_psnr",
        ),
        (
            Target("ssim", 1.0),
            {},
            "quality: 1 is not allowed; it must be between 0 and 1",
            "quality",
        ),
        (Target("calls", 0), {}, "max_calls: 0 is not allowed", "max_calls"),
        (Target("psnr", float("nan")), {}, "target_psnr: nan is not allowed", "target_psnr"),
        (Target("psnr", 30.0), {"count": 10}, "count: 10 .* takes 2 to 9 prompts", "count"),
        (Target("psnr", 30.0), {"fresh": 58}, "certify: 58 .* needs 59 or more", "certify"),
        (Target("calls", 9), {"fresh": 59}, "certify: needs a quality", "certify"),
    ],
)
def test_impossible_wishes(target: Target, changes: Any, told: str, param: str) -> None:
    """Each refusal names the option, its value and what is allowed."""
    with pytest.raises(InvalidRequest, match=told) as caught:
        Wish(target, **changes)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("wish", "prompts", "told"),
    [
        (Wish(Target("psnr", 30.0)), ["a", "a"], "prompts: 1 different .* 2 or more"),
        (Wish(Target("psnr", 30.0)), [], "prompts: 0 different .* 2 or more"),
        (Wish(Target("psnr", 30.0), LAX, 2, 4), list("abcde"), "prompts: 5 different .* 6 or more"),
    ],
)
def test_prompts_must_suffice(wish: Wish, prompts: list[str], told: str) -> None:
    """For the search, and for as many fresh ones as the certificate is to have."""
    with pytest.raises(InvalidRequest, match=told) as caught:
        wish.requests(prompts)
    assert caught.value.param == "prompts"
