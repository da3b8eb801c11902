"""The caches that diffusers ships, through `transformer.enable_cache`."""

from __future__ import annotations

import ast
import contextlib
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from statistics import fmean
from typing import Any

import diffusers
import torch

from warpcache_ray.bench.rivals.made import Generate, run
from warpcache_ray.engine.events import Generation

_NEED_TIMESTEP = ("PyramidAttentionBroadcastConfig", "FasterCacheConfig")
_TRANSFORMERS = ("transformer", "transformer_2")


@contextmanager
def diffusers_hooks(pipeline: Any, options: Mapping[str, Any], steps: int) -> Iterator[Generate]:
    """`config`: the name of a configuration class of diffusers; its fields beside it."""
    fields = dict(options)
    name = fields.pop("config")
    if "taylor_factors_dtype" in fields:
        fields["taylor_factors_dtype"] = getattr(torch, fields["taylor_factors_dtype"])
    if "attention_weight" in fields:
        weight = fields.pop("attention_weight")
        fields["attention_weight_callback"] = lambda module: weight
    if name == "MagCacheConfig":
        fields["num_inference_steps"] = steps
    if name in _NEED_TIMESTEP:
        fields["current_timestep_callback"] = lambda: pipeline.current_timestep
    with _enabled(pipeline, name, fields):
        yield lambda g: run(pipeline, g)


def magcache_ratios(pipeline: Any, generations: Sequence[Generation]) -> list[float]:
    """MagCache's constants from its own calibration mode: the mean over these runs and their branches.

    (It takes one list for all branches, and gives its findings only as text.)
    """
    steps = generations[0].num_inference_steps
    said = io.StringIO()
    fields = {"calibrate": True, "num_inference_steps": steps}
    with _enabled(pipeline, "MagCacheConfig", fields), contextlib.redirect_stdout(said):
        for generation in generations:
            run(pipeline, generation)
    found = [ast.literal_eval(s) for s in said.getvalue().splitlines() if s.startswith("[1")]
    return [fmean(at_step) for at_step in zip(*found, strict=True)]


@contextmanager
def _enabled(pipeline: Any, name: str, fields: Mapping[str, Any]) -> Iterator[None]:
    found = [t for n in _TRANSFORMERS if (t := getattr(pipeline, n, None)) is not None]
    for transformer in found:
        transformer.enable_cache(getattr(diffusers, name)(**fields))
    try:
        yield
    finally:
        for transformer in found:
            transformer.disable_cache()
