"""Which model this is, and what a run of it is like: what profiled policies are for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from warpcache_ray.models import class_name
from warpcache_ray.models.pipelines import usual
from warpcache_ray.policy_document import PolicyKey

SAMPLES = 1024
"""Values of each weight that tell it from another: a model of 14 billion is read in a second."""


def fingerprint(transformer: nn.Module) -> str:
    """Class and configuration of a transformer, as policies name the model they were calibrated on."""
    config: Any = transformer.config
    settings = {k: v for k, v in config.items() if not k.startswith("_")}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    return f"{class_name(transformer)}-{digest.hexdigest()[:12]}"


def identity(transformer: nn.Module) -> str:
    """The fingerprint, and that of the weights: the same in every dtype but float8, with the cache on or
    off, whatever LoRAs are beside them; another after any further training."""
    # The cache's stand-in moves blocks in the module tree, so names don't count.
    own = (w for name, w in transformer.state_dict().items() if ".lora_" not in name)
    weights = sorted(map(_weight_digest, own))
    return f"{fingerprint(transformer)}-{hashlib.sha256(b''.join(weights)).hexdigest()[:12]}"


def _weight_digest(weight: Tensor) -> bytes:
    plain = weight.dequantize() if hasattr(weight, "__tensor_flatten__") else weight
    flat = plain.detach().reshape(-1)
    every = max(1, flat.numel() // SAMPLES)
    # What is left of a value in all dtypes that models are loaded in, but for float16's smallest.
    values = flat[::every][:SAMPLES].to(torch.bfloat16).float().cpu().numpy()
    return hashlib.sha256(repr(tuple(weight.shape)).encode() + values.tobytes()).digest()


def policy_key(pipe: Any, arguments: Mapping[str, Any]) -> PolicyKey:
    """What policies are for that are profiled on runs with these arguments of the pipeline; what is left out has the
    pipeline's default."""
    asked = {**usual(pipe), **{n: value for n, value in arguments.items() if value is not None}}
    config = pipe.scheduler.config
    return PolicyKey(
        model=identity(pipe.transformer),
        height=asked["height"],
        width=asked["width"],
        num_frames=asked.get("num_frames", 1),
        steps=asked["num_inference_steps"],
        scheduler=type(pipe.scheduler).__name__,
        shift=config.get("flow_shift", config.get("shift")),
        guidance_scale=asked.get("guidance_scale"),
    )
