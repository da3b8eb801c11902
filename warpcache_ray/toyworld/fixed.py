"""How far a profiled policy is from the best fixed schedule that brute force finds on the captions of its own test.

`python -m warpcache_ray.toyworld.fixed --model DIR --checked DIR --work DIR`, after `toyworld.guarantee` with the same
`--work`: with two calls fewer than the policy's (then three, ...), some 150 schedules under `auto`'s forecasts. One is
as good if no more of the unseen captions miss the target than under the policy. The hardest captions come first, and
what has missed too often isn't run any further, so most schedules cost a few runs.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from tqdm import tqdm

from warpcache_ray.core.policies.auto import Auto, Track
from warpcache_ray.core.schedule import HORIZON, Plan, plan
from warpcache_ray.policy_document import PolicyDocument
from warpcache_ray.policy_spec import load_document, parse_policy
from warpcache_ray.toyworld.guarantee import ARGUMENTS, captions
from warpcache_ray.tuning.runs import Request, Runs

ANSWERS = (0.5, 0.7, 1.0, 1.4, 2.0, 3.0)
WARMUPS = (1, 3, 5, 7, 9)
FEWER = (2, 3, 4)
"""How many calls fewer than the policy's are tried, as long as there is a schedule."""


@dataclass(frozen=True, kw_only=True)
class Fixed(Auto):
    """`auto` with its steps given."""

    schedule: tuple[int, ...] = ()

    def _next(self, track: Track, p: int | None, s: int) -> int:
        return next((step for step in self.schedule if step > s), track.plan.steps)


def schedules(charts: Sequence[Plan], calls: int) -> list[tuple[int, ...]]:
    """Those of the closed form with other Jacobians and more steps at the start, and all that differ from one of the
    closed form's own in a step that is moved by one."""
    planned = [_started(chart, calls, warmup) for warmup in WARMUPS for chart in charts]
    moved = [m for own in planned[: len(charts)] for m in _moved(own, charts[0].steps)]
    return [s for s in dict.fromkeys([*planned, *moved]) if _fine(s, charts[0].steps)]


def _started(chart: Plan, calls: int, warmup: int) -> tuple[int, ...]:
    steps = list(range(min(warmup, calls)))
    while len(steps) < calls:
        before = steps[-2] if len(steps) > 1 else None
        following = chart.turn(before, steps[-1], calls - len(steps))
        if following >= chart.steps:
            break
        steps.append(following)
    return tuple(steps)


def _moved(steps: tuple[int, ...], total: int) -> Iterator[tuple[int, ...]]:
    for i in range(1, len(steps)):
        for by in (-1, 1):
            moved = {*steps[:i], steps[i] + by, *steps[i + 1 :]}
            if len(moved) == len(steps) and 0 < steps[i] + by < total:
                yield tuple(sorted(moved))


def _fine(steps: tuple[int, ...], total: int) -> bool:
    return all(b - a <= HORIZON for a, b in zip(steps, (*steps[1:], total), strict=True))


def best(runs: Runs, document: PolicyDocument, requests: Sequence[Request]) -> dict[str, Any]:
    """The fewest calls of a schedule that misses no more of the requests than the policy does."""
    policy = parse_policy(document.policy)
    assert isinstance(policy, Auto)
    assert policy.gram is not None
    assert policy.max_calls is not None
    metric, target = document.target.metric, document.target
    scores = {request: runs.score(request, policy) for request in requests}
    allowed = sum(not score.keeps(target) for score in scores.values())
    hardest = sorted(requests, key=lambda request: float(getattr(scores[request], metric)))
    course = runs.reference(requests[0]).course
    charts = [plan(policy.gram, course, answer) for answer in ANSWERS]
    tried, found = 0, None
    for fewer in FEWER:
        candidates = schedules(charts, policy.max_calls - fewer)
        for steps in tqdm(candidates, desc=f"{target}, {fewer} calls fewer"):
            tried += 1
            candidate = Fixed(gram=policy.gram, shape=policy.shape, schedule=steps)
            if _as_good(runs, candidate, document, hardest, allowed):
                found = steps
                break
        else:
            break
    return {
        "target": str(target),
        "calls": policy.max_calls,
        "fewer": None if found is None else list(found),
        "schedules": tried,
        "missed": allowed,
        "requests": len(requests),
    }


def _as_good(
    runs: Runs, policy: Auto, document: PolicyDocument, requests: Sequence[Request], allowed: int
) -> bool:
    missed = 0
    for request in requests:
        missed += not runs.score(request, policy).keeps(document.target)
        if missed > allowed:
            return False
    return True


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="a toy world's folder")
    parser.add_argument("--checked", type=Path, required=True, help="what guarantee wrote")
    parser.add_argument("--work", type=Path, required=True, help="where runs are kept")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    pipe = DiffusionPipeline.from_pretrained(given.model, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    rows = json.loads((given.checked / "guarantee.json").read_text())["rows"]
    seeds = sorted({row["seed"] for row in rows})
    drawn = captions(max(seeds) + 1)
    requests = [Request(drawn[seed], seed) for seed in seeds]
    found = []
    for path in sorted(given.checked.glob("*-*.json")):
        document = load_document(path)
        steps = {"num_inference_steps": document.key.steps}
        found.append(best(Runs(pipe, {**ARGUMENTS, **steps}, given.work), document, requests))
        (given.checked / "fixed.json").write_text(json.dumps(found, indent=1) + "\n")
        print(found[-1])


if __name__ == "__main__":
    main()
