"""What a profiled policy is worth where it wasn't profiled: with other numbers of steps, and on much faster motion.

`python -m warpcache_ray.toyworld.elsewhere --model DIR --policy FILE --out FILE --work DIR`
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from tqdm import tqdm

from warpcache_ray.core.gram import Gram
from warpcache_ray.core.policies.auto import Auto
from warpcache_ray.core.schedule import plan
from warpcache_ray.policy_spec import load_policy
from warpcache_ray.toyworld.captions import Scene, Shape, Speed, canonical, sample_scene
from warpcache_ray.toyworld.guarantee import ARGUMENTS
from warpcache_ray.tuning.outlook import predicted
from warpcache_ray.tuning.runs import Request, Runs
from warpcache_ray.tuning.search import error

SEED = 50_000_000
STEPS = (50, 40, 30, 60)
CALIBRATED = 6
TRUSTS = (0.0, 0.5, 1.0)


def scenes(count: int, seed: int, shapes: int = 1) -> list[Scene]:
    """Scenes that no profile has seen."""
    return [sample_scene(random.Random(SEED + seed + i), shapes) for i in range(count)]


def slowed(scene: Scene) -> Scene:
    """The same at rest or nearly so, under a still camera."""
    speeds: tuple[Speed, Speed] = ("still", "slow")
    shapes = [replace(s, speed=speeds[i % 2]) for i, s in enumerate(scene.shapes, len(scene.pan))]
    return replace(scene, shapes=tuple(shapes), pan="still")


def hurried(scene: Scene) -> Scene:
    """Two fast shapes under a moving camera, against each other where they can."""
    one, two = scene.shapes
    pan = scene.pan if scene.pan != "still" else "left"
    return replace(scene, shapes=(_fast(one), _fast(two)), pan=pan)


def _fast(shape: Shape) -> Shape:
    return replace(shape, speed="fast")


def other_steps(
    pipe: Any, policy: Auto, requests: Sequence[Request], work: Path
) -> list[dict[str, Any]]:
    """The policy, planned anew on the noise levels of each number of steps."""
    rows = []
    for steps in STEPS:
        runs = Runs(pipe, {**ARGUMENTS, "num_inference_steps": steps}, work)
        rows.append({"steps": steps, **_tried(runs, policy, requests)})
    return rows


def faster_motion(
    pipe: Any, calls: int, calm: Sequence[Request], fast: Sequence[Request], work: Path
) -> list[dict[str, Any]]:
    """Calibrated on calm scenes alone, then tried on calm and on fast ones: a number of calls, and error control of
    rising trust that aims at what that number gives on calm scenes."""
    runs = Runs(pipe, {**ARGUMENTS, "num_inference_steps": STEPS[0]}, work)
    seen, unseen = calm[:CALIBRATED], calm[CALIBRATED:]
    references = [runs.reference(request) for request in seen]
    first = references[0]
    mean = torch.stack([torch.from_numpy(r.gram) for r in references]).mean(0)
    gram = Gram.of(first.course.sigmas[:-1], mean, first.branches)
    plain = Auto(gram=gram, max_calls=calls, shape=first.shape)
    aim = statistics.median(runs.score(request, plain).psnr for request in seen)
    level = aim - predicted(error(plan(gram, first.course), calls))
    aimed = replace(plain, max_calls=None, target_psnr=round(aim, 1), level=round(level, 2))
    policies = {f"{calls} calls": plain} | {
        f"error control, trust {trust:g}": replace(aimed, trust=trust) for trust in TRUSTS
    }
    return [
        {"policy": name, "scenes": kind, "aim": round(aim, 1), **_tried(runs, policy, requests)}
        for name, policy in policies.items()
        for kind, requests in (("calm", unseen), ("fast", fast))
    ]


def _tried(runs: Runs, policy: Auto, requests: Sequence[Request]) -> dict[str, Any]:
    scores = [runs.score(request, policy) for request in tqdm(requests, leave=False)]
    return {
        "calls": round(statistics.mean(s.calls for s in scores), 2),
        "psnr": round(statistics.mean(s.psnr for s in scores), 2),
        "worst": round(min(s.psnr for s in scores), 2),
        "ssim": round(statistics.mean(s.ssim for s in scores), 4),
        "requests": len(scores),
    }


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--policy", type=Path, required=True, help="a profile with max_calls")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="where runs are kept")
    parser.add_argument("--captions", type=int, default=8)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    pipe = DiffusionPipeline.from_pretrained(given.model, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    policy = load_policy(given.policy)
    assert isinstance(policy, Auto)
    assert policy.max_calls is not None
    count = given.captions
    plain = _requests(scenes(count, 0), 1)
    calm = _requests([slowed(s) for s in scenes(CALIBRATED + count, 1000)], 1001)
    fast = _requests([hurried(s) for s in scenes(count, 2000, shapes=2)], 2001)
    found: dict[str, Any] = {}
    found["steps"] = other_steps(pipe, policy, plain, given.work)
    _write(given.out, found)
    found["motion"] = faster_motion(pipe, policy.max_calls, calm, fast, given.work)
    _write(given.out, found)


def _requests(wanted: Sequence[Scene], seed: int) -> list[Request]:
    return [Request(canonical(scene), i) for i, scene in enumerate(wanted, seed)]


def _write(out: Path, found: dict[str, Any]) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
