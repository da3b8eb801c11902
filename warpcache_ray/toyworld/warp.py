"""Where a spatial warp pays: between steps, and from one chunk of a roll-out to the next.

`python -m warpcache_ray.toyworld.warp --out DIR` runs the image-to-video demo model on held-out scenes of slow and of
fast motion and writes warp.md. Rows are kept in `DIR/rows.json` as they come; a second run goes on from them.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from warpcache_ray import disable_dit_cache, dit_cache_stats, enable_dit_cache
from warpcache_ray.config import ModelConfig
from warpcache_ray.policy_spec import PolicySpec, load_policy, parse_policy
from warpcache_ray.quality.fidelity import psnr
from warpcache_ray.toyworld import rollout
from warpcache_ray.toyworld.captions import Scene, Speed, sample_scene
from warpcache_ray.toyworld.scene import render, sample_layout
from warpcache_ray.toyworld.train.data import HELD_OUT_SEED
from warpcache_ray.tuning import calibrate

MODEL = "toyworld/wan-i2v"
SPEEDS: tuple[Speed, ...] = ("slow", "fast")
THRESHOLDS = (0.04, 0.08)
BUDGETS = (8, 11)
CALIBRATION_SCENES = 6
CALIBRATION_SEED = HELD_OUT_SEED + 3_000_000
TEST_SEED = HELD_OUT_SEED + 3_500_000
CHUNKS = 3
BEGINNINGS = (2, 6)
"""How many first steps are taken from the chunk before."""

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Case:
    """A held-out scene, its speed, its first frame and a seed for the noise."""

    scene: Scene
    speed: Speed
    image: NDArray[np.float32]
    seed: int


def cases(speed: Speed, first: int) -> Iterator[Case]:
    """Scenes of one shape that moves at this speed before a still camera."""
    seed = first
    while True:
        seed += 1
        rng = random.Random(seed)
        scene = sample_scene(rng, 1)
        if scene.shapes[0].speed == speed and scene.pan == "still":
            image = render(scene, sample_layout(scene, rng))[0].numpy()
            yield Case(scene, speed, image, seed - first)


@dataclass(slots=True)
class Notebook:
    """Rows by key, kept in a file."""

    path: Path
    rows: dict[str, Row] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path) -> Notebook:
        """With what the file holds."""
        return cls(path, json.loads(path.read_text()) if path.exists() else {})

    def once(self, key: str, make: Callable[[], Row]) -> Row:
        """The row of this key, made if it is missing."""
        if key not in self.rows:
            self.rows[key] = make()
            self.path.write_text(json.dumps(self.rows))
        return self.rows[key]


def contenders(auto: PolicySpec) -> dict[str, PolicySpec]:
    """Policies by what the table calls them."""
    found: dict[str, PolicySpec] = {}
    for threshold in THRESHOLDS:
        for warp in (False, True):
            name = f"worldcache {threshold}{', warp' if warp else ''}"
            found[name] = {"name": "worldcache", "threshold": threshold, "warp": warp}
    for budget in BUDGETS:
        found[f"auto {budget}"] = parse_policy(auto, max_calls=budget)
    return found


def between_steps(pipe: Any, case: Case, steps: int, policies: Mapping[str, PolicySpec]) -> Row:
    """PSNR and calls of each policy on one scene."""
    call = rollout.call_for(case.scene, case.image, case.seed, steps)
    reference = rollout.generate(pipe, call)
    row: Row = {"speed": case.speed}
    for name, policy in policies.items():
        enable_dit_cache(pipe, policy)
        try:
            made = rollout.generate(pipe, call)
            records = dit_cache_stats(pipe).records
        finally:
            disable_dit_cache(pipe)
        computed = sum(not r.decision.skips for r in records) / 2
        row[name] = {"calls": computed, "psnr": psnr(made, reference, 1.0)}
    return row


def across_chunks(pipe: Any, case: Case, steps: int) -> Row:
    """What each chunk of a roll-out tells of the next, and what comes of beginning the second from the first."""
    chunks = list(rollout.roll_out(pipe, case.scene, case.image, case.seed, steps, CHUNKS))
    flows = [rollout.flow_between(pipe, *pair) for pair in pairwise(chunks)]
    curves: dict[str, list[Sequence[float]]] = {}
    for (before, chunk), flow in zip(pairwise(chunks), flows, strict=True):
        for name, errors in rollout.forecasts(before, chunk, flow).items():
            curves.setdefault(name, []).append(errors)
    before, chunk = chunks[:2]
    begun = {}
    for step in BEGINNINGS:
        for name, by in (("", None), (", warped", flows[0])):
            latent = rollout.begun_from(before, chunk, step, by)
            made = rollout.continued(pipe, chunk, step, latent)
            begun[f"{step} steps{name}"] = psnr(made, chunk.frames, 1.0)
    means = {name: rollout.mean_by_step(each) for name, each in curves.items()}
    return {"speed": case.speed, "forecasts": means, "begun": begun}


def report(rows: Mapping[str, Row], steps: int, model: str) -> str:
    """Tables in Markdown."""
    lines = [f"{model}, {steps} steps, guidance 4; `python -m warpcache_ray.toyworld.warp`.", ""]
    lines += ["## Between steps", ""]
    lines += _table(_of(rows, "between"), "policy", _cell)
    lines += ["", "## From chunk to chunk: PSNR of the second chunk, begun from the first", ""]
    begun = [{"speed": r["speed"], **r["begun"]} for r in _of(rows, "across")]
    lines += _table(begun, "taken over", lambda found: f"{np.mean(found):.1f} dB")
    lines += ["", "## From chunk to chunk: error of the foretold content, share of its norm", ""]
    return "\n".join([*lines, *_curves(_of(rows, "across"), steps), ""])


def _of(rows: Mapping[str, Row], kind: str) -> list[Row]:
    return [row for key, row in rows.items() if key.startswith(kind)]


def _table(rows: Sequence[Row], head: str, cell: Callable[[list[Any]], str]) -> list[str]:
    counts = {s: sum(r["speed"] == s for r in rows) for s in SPEEDS}
    lines = [f"| {head} | " + " | ".join(f"{s} (n = {counts[s]})" for s in SPEEDS) + " |"]
    lines.append("|---" * (1 + len(SPEEDS)) + "|")
    for name in [key for key in rows[0] if key != "speed"] if rows else []:
        found = [cell([r[name] for r in rows if r["speed"] == s]) for s in SPEEDS]
        lines.append(f"| {name} | " + " | ".join(found) + " |")
    return lines


def _cell(found: Sequence[Mapping[str, float]]) -> str:
    calls, values = (np.array([f[key] for f in found]) for key in ("calls", "psnr"))
    return f"{calls.mean():.1f} calls, {values.mean():.1f} dB (worst {values.min():.1f})"


def _curves(rows: Sequence[Row], steps: int) -> list[str]:
    shown = [s for s in (0, 1, 2, 4, 8, 16, 24, 32, 40, 48) if s < steps]
    lines = ["| motion | foretold from | " + " | ".join(f"step {s}" for s in shown) + " |"]
    lines.append("|---" * (2 + len(shown)) + "|")
    for speed in SPEEDS:
        of_speed = [r["forecasts"] for r in rows if r["speed"] == speed]
        for name in of_speed[0] if of_speed else []:
            mean = rollout.mean_by_step([forecasts[name] for forecasts in of_speed])
            cells = ["–" if np.isnan(mean[s]) else f"{mean[s]:.3f}" for s in shown]
            lines.append(f"| {speed} | {name} | " + " | ".join(cells) + " |")
    return lines


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--scenes", type=int, default=5, help="of each speed")
    parser.add_argument("--steps", type=int, default=50)
    given = parser.parse_args(arguments)
    from diffusers import DiffusionPipeline

    torch.set_num_threads(1)
    pipe = DiffusionPipeline.from_pretrained(ModelConfig(given.model).folder, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    given.out.mkdir(parents=True, exist_ok=True)
    notebook = Notebook.open(given.out / "rows.json")
    policies = contenders(_calibrated(pipe, given.out / "auto.json", given.steps))
    chosen = [c for s in SPEEDS for c in islice(cases(s, TEST_SEED), given.scenes)]
    for case in tqdm(sorted(chosen, key=lambda c: c.seed), desc="scenes"):
        key = f"{case.speed} {case.seed}"
        notebook.once(f"between {key}", partial(between_steps, pipe, case, given.steps, policies))
        notebook.once(f"across {key}", partial(across_chunks, pipe, case, given.steps))
    text = report(notebook.rows, given.steps, given.model)
    (given.out / "warp.md").write_text(text)
    print(text)


def _calibrated(pipe: Any, path: Path, steps: int) -> PolicySpec:
    if not path.exists():
        per_speed = CALIBRATION_SCENES // len(SPEEDS)
        chosen = [c for s in SPEEDS for c in islice(cases(s, CALIBRATION_SEED), per_speed)]
        calls = [rollout.call_for(c.scene, c.image, c.seed, steps) for c in chosen]
        calibrate(pipe, calls, max_calls=max(BUDGETS)).save(path)
    return load_policy(path)


if __name__ == "__main__":
    main()
