"""Models are told apart by their weights, whatever form these have."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from warpcache_ray import disable_dit_cache, enable_dit_cache
from warpcache_ray.engine.fingerprints import fingerprint, identity, policy_key
from warpcache_ray.errors import InvalidPolicy


def test_weights_count_and_their_form_does_not(pipe: Any) -> None:
    """Half precision and the cache change nothing; one weight trained on a little does."""
    own = identity(pipe.transformer)
    assert own.startswith(f"{fingerprint(pipe.transformer)}-")
    enable_dit_cache(pipe, "worldcache")
    assert identity(pipe.transformer) == own
    disable_dit_cache(pipe)
    assert identity(pipe.transformer.to(torch.bfloat16)) == own
    with torch.no_grad():
        next(p for p in pipe.transformer.parameters() if p.ndim > 1).mul_(1.01)
    assert identity(pipe.transformer) != own


def test_a_policy_for_other_weights_is_refused(pipe: Any) -> None:
    """One for these is taken, named with or without them."""
    for known in (fingerprint(pipe.transformer), identity(pipe.transformer)):
        enable_dit_cache(pipe, "auto", model=known, max_calls=3)
        disable_dit_cache(pipe)
    foreign = f"{fingerprint(pipe.transformer)}-0123456789ab"
    with pytest.raises(InvalidPolicy, match=f"calibrated on {foreign}, this is") as caught:
        enable_dit_cache(pipe, "auto", model=foreign, max_calls=3)
    assert caught.value.param == "policy.model"


def test_a_key_has_the_pipelines_defaults(pipe: Any, model: str) -> None:
    """What a call leaves out, or leaves open, is what the pipeline would take."""
    key = policy_key(pipe, {"height": 32, "width": None, "num_inference_steps": 8})
    defaults = policy_key(pipe, {})
    assert (key.height, key.steps, key.width) == (32, 8, defaults.width)
    shift = {"wan": 3.0, "hunyuan": 7.0, "cosmos": 5.0}[model]
    assert (key.model, key.scheduler) == (identity(pipe.transformer), type(pipe.scheduler).__name__)
    assert (key.shift, defaults.guidance_scale is None) == (shift, False)
