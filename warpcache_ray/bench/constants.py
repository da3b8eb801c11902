"""The constants that published methods need of a model, from the calibration runs that `auto` has too.

`python -m warpcache_ray.bench.constants --model toyworld/wan` writes policy files beside the contenders file:
`teacache.json`, `magcache.json`, `lemica-<calls>.json` and `auto.json`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from warpcache_ray.bench.command import CALIBRATION_PROMPTS, HERE
from warpcache_ray.bench.conditions import CALIBRATION_SEED, Conditions, fingerprint, read_prompts
from warpcache_ray.core.policies.lemica import LeMiCa
from warpcache_ray.core.policies.magcache import MagCache
from warpcache_ray.core.policies.teacache import TeaCache
from warpcache_ray.core.policy import Policy
from warpcache_ray.core.types import Course, Site
from warpcache_ray.models import adapter_for
from warpcache_ray.policy_document import Target
from warpcache_ray.policy_spec import parse_policy
from warpcache_ray.tuning import Wish, fits, profile_model
from warpcache_ray.tuning.record import Recording, record

LEMICA_CALLS = (8, 10, 12, 14, 16, 18, 20, 24, 28, 32)
COUNT = 12
TARGET = 35.0

Floats = NDArray[np.float64]


@dataclass(slots=True)
class Inputs:
    """What went into the block stack at each denoiser call."""

    seen: list[Tensor] = field(default_factory=list)

    def changes(self, every: int) -> list[float]:
        """Relative changes between every `every`-th call: those of one branch."""
        own = self.seen[::every]
        return [_change(now, before) for before, now in pairwise(own)]


def _change(now: Tensor, before: Tensor) -> float:
    return float((now - before).abs().sum() / before.abs().sum())


@contextmanager
def watched(transformer: Any) -> Iterator[Inputs]:
    """Watches what goes into the first block."""
    adapter = adapter_for(transformer)
    assert adapter is not None
    inputs = Inputs()
    first = getattr(transformer, adapter.block_lists[0])[0]

    def see(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        inputs.seen.append((args[0] if args else kwargs["hidden_states"]).clone())

    handle = first.register_forward_pre_hook(see, with_kwargs=True)
    try:
        yield inputs
    finally:
        handle.remove()


def teacache(changes: Sequence[Sequence[float]], recordings: Sequence[Recording]) -> TeaCache:
    """The polynomial from changes of the input to changes of the output."""
    outputs = [
        [_change(now, before) for before, now in pairwise(cond)]
        for cond in (r.outputs["cond"] for r in recordings)
    ]
    fitted = fits.change_polynomial(np.ravel(changes), np.ravel(outputs))
    print(f"teacache: the input's change explains {fitted.explained:.2f} of the output's")
    return TeaCache(coefficients=fitted.coefficients)


def magcache(recordings: Sequence[Recording]) -> MagCache:
    """The ratios of the outputs' magnitudes."""
    norms = [[float(o.norm()) for o in r.outputs["cond"]] for r in recordings]
    return MagCache(site=Site.OUTPUT, ratios=fits.magnitude_ratios(norms))


def lemica(recordings: Sequence[Recording], course: Course, calls: int) -> LeMiCa:
    """The minimax path through the mean errors that runs of reuse make in the final latent."""
    errors = np.mean([_reuse_errors(r, course) for r in recordings], axis=0)
    path = fits.minimax_schedule(errors, calls)
    return LeMiCa(schedule=path.schedule, schedule_steps=len(errors))


def _reuse_errors(recording: Recording, course: Course) -> Floats:
    assert course.weights is not None
    n = len(course.weights)
    outputs = torch.stack([o.flatten() for o in recording.outputs["cond"]])
    if "uncond" in recording.outputs and course.guidance is not None:
        uncond = torch.stack([o.flatten() for o in recording.outputs["uncond"]])
        outputs = uncond + course.guidance * (outputs - uncond)
    weights = torch.tensor(course.weights)
    errors = np.full((n, n + 1), np.inf)
    for i in range(n):
        missed = (weights[i:, None] * (outputs[i:] - outputs[i])).cumsum(0).abs().mean(1)
        errors[i, i + 1 :] = missed.numpy()
    return errors


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--prompts", type=Path, default=CALIBRATION_PROMPTS)
    parser.add_argument("--count", type=int, default=COUNT)
    parser.add_argument("--only", choices=("published", "auto"))
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    conditions = Conditions(given.model, fingerprint(given.model))
    pipeline = conditions.pipeline()
    out = given.out or HERE / "contenders" / "-".join(Path(given.model).parts[-2:])
    out.mkdir(parents=True, exist_ok=True)
    prompts = read_prompts(given.prompts)[: given.count]
    calls = [
        {
            **conditions.generation(prompt, 0).pipeline_arguments(),
            "generator": torch.Generator().manual_seed(CALIBRATION_SEED + i),
            "output_type": "np",
        }
        for i, prompt in enumerate(prompts)
    ]
    if given.only != "auto":
        _published(pipeline, calls, out)
    if given.only != "published":
        _auto(pipeline, prompts, calls[0]).save(out / "auto.json")


def _auto(pipeline: Any, prompts: Sequence[str], call: dict[str, Any]) -> Policy:
    """What a search for `TARGET` found; how many calls, the contenders say."""
    arguments = {n: v for n, v in call.items() if n not in ("prompt", "generator", "output_type")}
    wish = Wish(Target("psnr", TARGET))
    with TemporaryDirectory() as work:
        document, _ = profile_model(pipeline, prompts, arguments, wish, Path(work))
    return parse_policy(document.policy, max_calls=None)


def _published(pipeline: Any, calls: Sequence[dict[str, Any]], out: Path) -> None:
    recordings, changes = [], []
    for call in tqdm(calls[:4], desc="uncached runs"):
        with watched(pipeline.transformer) as inputs:
            recordings.append(record(pipeline, {**call, "output_type": "latent"}))
        changes.append(inputs.changes(every=len(recordings[-1].outputs)))
    course = recordings[0].course
    assert course is not None
    teacache(changes, recordings).save(out / "teacache.json")
    magcache(recordings).save(out / "magcache.json")
    for budget in LEMICA_CALLS:
        lemica(recordings, course, budget).save(out / f"lemica-{budget}.json")


if __name__ == "__main__":
    main()
