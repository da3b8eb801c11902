"""Finds a policy for a model from a few of its own runs: `profile`."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from warpcache_ray.core.gram import Gram
from warpcache_ray.core.policies.auto import FEWEST_STEPS, Auto, obstacle
from warpcache_ray.core.schedule import plan
from warpcache_ray.core.types import Course
from warpcache_ray.engine.fingerprints import fingerprint
from warpcache_ray.engine.install import Installation
from warpcache_ray.errors import InvalidRequest
from warpcache_ray.policy_spec import parse_policy
from warpcache_ray.quality.fidelity import psnr
from warpcache_ray.tuning.record import Recording, record, run
from warpcache_ray.tuning.runs import Reference

Decode = Callable[[Any], Any]

ANSWERS = (1.0, 0.7, 1.4)
"""Sizes of the Jacobian to try for real: which schedule is best depends on it, and calibration can't see it."""
TRIALS = 8
"""Prompts that each candidate runs."""
FEW_CALLS = 0.16
MANY_CALLS = 0.26
"""Shares of the steps at which the level is measured."""
TINY = 1e-12
"""No expected error is less."""


def profile(
    pipe: Any,
    calls: Sequence[Mapping[str, Any]],
    *,
    max_calls: int | None = None,
    target_psnr: float | None = None,
    share: float = 0.95,
    decode: Decode | None = None,
    progress: bool = True,
) -> Auto:
    """An `auto` policy calibrated on `calls` (arguments of the pipeline, one mapping per run) of a diffusers pipeline.

    Every call runs once uncached; then at most three candidates run on up to eight of the calls. With `max_calls`,
    the candidate of best PSNR (mean and worst) wins; with `target_psnr`, `share` of the calls' qualities reach it.
    Quality is the PSNR of `decode(output)`, or of the output itself: frames, or latents with the range of the
    calibrated ones as peak. Calls without `generator` and `latents` get seeds 0, 1, 2, ...: the same calls give the
    same policy.

    Raises:
        InvalidPolicy: `max_calls` or `target_psnr` out of range, or both given.
        InvalidRequest: no calls, calls that differ in steps, guidance or shape, or a run that can't be planned.
    """
    wanted = parse_policy(Auto(), max_calls=max_calls, target_psnr=target_psnr)
    assert isinstance(wanted, Auto)
    if not 0 < share < 1:
        raise InvalidRequest(
            f"share: {share!r} is not allowed; it must be between 0 and 1", "share"
        )
    seeded = [_seeded(call, seed) for seed, call in enumerate(calls)]
    if not seeded:
        raise InvalidRequest("calls: give at least one", "calls")
    recordings, grams = [], []
    for call in tqdm(seeded, desc="uncached runs", disable=not progress):
        recording = record(pipe, call)
        grams.append(recording.gram())
        recording.outputs = {b: tensors[:1] for b, tensors in recording.outputs.items()}
        recordings.append(recording)
    course = common_course(recordings)
    first = recordings[0]
    gram = Gram.of(course.sigmas[:-1], torch.stack(grams).mean(0), first.branches)
    policy = replace(wanted, gram=gram, model=fingerprint(pipe.transformer), shape=first.shape)
    references = [_decoded(r.result, decode) for r in recordings[:TRIALS]]
    trials = _Trials(pipe, seeded[:TRIALS], references, decode, progress)
    if target_psnr is None:
        return _best(policy, trials, course)
    return _levelled(policy, trials, course, share)


@dataclass(slots=True)
class _Trials:
    """Real runs of candidates, and how they compare with the recorded ones."""

    pipe: Any
    calls: Sequence[Mapping[str, Any]]
    references: Sequence[NDArray[np.float64]]
    decode: Decode | None
    progress: bool

    def qualities(self, policy: Auto, name: str) -> list[float]:
        """PSNR of each call under the policy."""
        peak = _peak(self.references)
        found = []
        with _installed(self.pipe, policy):
            pairs = list(zip(self.calls, self.references, strict=True))
            for call, reference in tqdm(pairs, desc=name, disable=not self.progress):
                output = _decoded(run(self.pipe, call), self.decode)
                found.append(psnr(output, reference, peak))
        return found


def _decoded(output: Any, decode: Decode | None) -> NDArray[np.float64]:
    return _array(decode(output) if decode else output)


def _best(policy: Auto, trials: _Trials, course: Course) -> Auto:
    candidates: dict[tuple[int, ...], Auto] = {}
    assert policy.gram is not None
    for answer in ANSWERS:
        chart = plan(policy.gram, course, answer)
        budget = policy.budget(chart)
        candidates.setdefault(chart.schedule(budget), replace(policy, answer=answer))
    scored = []
    for number, candidate in enumerate(candidates.values(), 1):
        found = trials.qualities(candidate, f"candidate {number} of {len(candidates)}")
        level = _level(candidate, found, course, candidate.budget(_chart(candidate, course)), 0.5)
        scored.append(((statistics.mean(found) + min(found)) / 2, replace(candidate, level=level)))
    return max(scored, key=lambda pair: pair[0])[1]


def _levelled(policy: Auto, trials: _Trials, course: Course, share: float) -> Auto:
    """Measures at two budgets what PSNR an expected error comes to."""
    steps = len(course.sigmas) - 1
    levels = []
    for part in (FEW_CALLS, MANY_CALLS):
        budget = policy.budget(_chart(policy, course), math.ceil(part * steps))
        trial = replace(policy, target_psnr=None, max_calls=budget)
        found = trials.qualities(trial, f"{budget} calls")
        levels.append(_level(trial, found, course, budget, 1 - share))
    return replace(policy, level=min(levels))


def _level(
    policy: Auto, qualities: Sequence[float], course: Course, budget: int, quantile: float
) -> float:
    expected = _chart(policy, course).rest(None, 0, budget - 1)
    # A budget of all steps leaves no error.
    return round(float(np.quantile(qualities, quantile)) + 10 * math.log10(max(expected, TINY)), 2)


def _chart(policy: Auto, course: Course) -> Any:
    assert policy.gram is not None
    return plan(policy.gram, course, policy.answer)


def _seeded(call: Mapping[str, Any], seed: int) -> dict[str, Any]:
    if call.get("generator") is None and call.get("latents") is None:
        return {**call, "generator": torch.Generator().manual_seed(seed)}
    return dict(call)


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


@contextmanager
def _installed(pipe: Any, policy: Auto) -> Iterator[None]:
    installation = Installation(pipe, policy)
    try:
        yield
    finally:
        installation.remove()


def _array(output: Any) -> NDArray[np.float64]:
    """Frames or latents as numbers; 8-bit pixels in [0, 1]."""
    if isinstance(output, Tensor):
        return output.detach().double().cpu().numpy()
    array = np.asarray(output)
    if array.dtype == object:
        array = np.stack([np.asarray(image) for image in array.ravel()])
    scale = 255.0 if array.dtype == np.uint8 else 1.0
    return array.astype(np.float64) / scale


def _peak(references: Sequence[NDArray[np.float64]]) -> float:
    low, high = min(r.min() for r in references), max(r.max() for r in references)
    return 1.0 if low >= 0 and high <= 1 else float(high - low)
