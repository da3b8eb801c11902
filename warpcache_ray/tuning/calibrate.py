"""What a model's uncached runs say: `auto` with the mean Gram matrix of any calls of a pipeline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from warpcache_ray.core.gram import Gram
from warpcache_ray.core.policies.auto import FEWEST_STEPS, Auto, obstacle
from warpcache_ray.core.types import Course
from warpcache_ray.engine.fingerprints import fingerprint
from warpcache_ray.errors import InvalidRequest
from warpcache_ray.policy_spec import parse_policy
from warpcache_ray.tuning.record import Recording, record
from warpcache_ray.tuning.runs import Reference


def calibrate(
    pipe: Any,
    calls: Sequence[Mapping[str, Any]],
    *,
    max_calls: int | None = None,
    progress: bool = True,
) -> Auto:
    """An `auto` policy from `calls` (arguments of the pipeline, one mapping per run) of a diffusers pipeline, each run
    once uncached. Nothing is tried and nothing promised: `profile_model` finds how many calls a quality takes.

    Calls without `generator` and `latents` get seeds 0, 1, 2, ...: the same calls give the same policy.

    Raises:
        InvalidPolicy: `max_calls` out of range.
        InvalidRequest: no calls, calls that differ in steps, guidance or shape, or a run that can't be planned.
    """
    wanted = parse_policy(Auto(), max_calls=max_calls)
    assert isinstance(wanted, Auto)
    if not calls:
        raise InvalidRequest("calls: give at least one", "calls")
    recordings, grams = [], []
    for seed, call in enumerate(tqdm(calls, desc="uncached runs", disable=not progress)):
        recording = record(pipe, _seeded(call, seed))
        grams.append(recording.gram())
        # Of the outputs only the shape is needed any more.
        recording.outputs = {b: tensors[:1] for b, tensors in recording.outputs.items()}
        recordings.append(recording)
    course = common_course(recordings)
    model = fingerprint(pipe.transformer)
    return calibrated(course, recordings[0], grams, model, wanted.max_calls)


def calibrated(
    course: Course,
    run: Recording | Reference,
    grams: Sequence[Tensor],
    model: str,
    max_calls: int | None = None,
) -> Auto:
    """The policy of runs like this one, with these Gram matrices."""
    gram = Gram.of(course.sigmas[:-1], torch.stack(list(grams)).mean(0), run.branches)
    return Auto(gram=gram, model=model, shape=run.shape, max_calls=max_calls)


def common_course(recordings: Sequence[Recording | Reference]) -> Course:
    """The course that all runs have.

    Raises:
        InvalidRequest: they differ in steps, guidance or shape, or can't be planned.
    """
    kinds = {(r.course, r.branches, r.shape) for r in recordings}
    if len(kinds) > 1:
        raise InvalidRequest("calls: all must have the same steps, guidance and shape", "calls")
    course = recordings[0].course
    hindrance = obstacle(course)
    if hindrance is not None:
        raise InvalidRequest(
            f"calls: can't be planned ({hindrance}): needs a linear flow-matching solver and {FEWEST_STEPS} or more "
            "steps",
            "calls",
        )
    assert course is not None
    return course


def _seeded(call: Mapping[str, Any], seed: int) -> dict[str, Any]:
    if call.get("generator") is None and call.get("latents") is None:
        return {**call, "generator": torch.Generator().manual_seed(seed)}
    return dict(call)
