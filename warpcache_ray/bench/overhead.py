"""What the engine itself costs: skipped and computed calls beside plain diffusers' ones.

    python -m warpcache_ray.bench.overhead --out overhead.json

Runs are interleaved and one thread's CPU time is counted, so that other work on the machine hardly shows.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from warpcache_ray.config import ModelConfig
from warpcache_ray.engine.install import Installation
from warpcache_ray.policy_spec import parse_policy
from warpcache_ray.tuning.record import run

MODEL = "toyworld/wan"
CALL: Mapping[str, Any] = {
    "prompt": "a red circle moving left fast over a blue background, camera still",
    "height": 64,
    "width": 64,
    "num_frames": 17,
    "num_inference_steps": 12,
    "guidance_scale": 4.0,
    "output_type": "latent",
}
CALLS = CALL["num_inference_steps"] // 2
POLICIES: Mapping[str, Mapping[str, Any]] = {
    "output": {"name": "auto", "max_calls": CALLS},
    "blocks": {"name": "first_block", "threshold": 1e9, "max_skips": 1},
}
"""Of each site one that skips half of the calls."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Milliseconds of a denoiser call (medians), and shares of a plain one's: what a skip costs, what a recompute adds
    (by the fastest calls of each round, which nothing disturbed)."""

    plain_ms: float
    computed_ms: float
    skipped_ms: float
    skipped_share: float
    added_share: float


def measure(pipe: Any, rounds: int, call: Mapping[str, Any] = CALL) -> dict[str, Any]:
    """Cost at each site, and of the probe alone: plain calls of a model cut down to its first block."""
    spent: dict[str, list[float]] = {"plain": [], "probe": []}
    ratios: dict[str, list[float]] = {site: [] for site in POLICIES}
    for site in POLICIES:
        spent |= {f"{site} computed": [], f"{site} skipped": []}
    _one_round(pipe, call)
    for number in range(rounds):
        found = _one_round(pipe, call, number)
        for name, times in found.items():
            spent[name] += times
        for site in POLICIES:
            ratios[site].append(min(found[f"{site} computed"]) / min(found["plain"]))
    ms = {name: 1000 * statistics.median(times) for name, times in spent.items()}
    costs = {
        site: Cost(
            ms["plain"],
            ms[f"{site} computed"],
            ms[f"{site} skipped"],
            ms[f"{site} skipped"] / ms["plain"],
            statistics.median(ratios[site]) - 1,
        )
        for site in POLICIES
    }
    told = {site: {k: round(v, 4) for k, v in asdict(cost).items()} for site, cost in costs.items()}
    return {**told, "probe_ms": round(ms["probe"], 4)}


def _one_round(pipe: Any, call: Mapping[str, Any], number: int = 0) -> dict[str, list[float]]:
    """Seconds of all denoiser calls of one run each, every round beginning with another."""
    found: dict[str, list[float]] = {}
    kinds = ["plain", *POLICIES, "probe"]
    first = number % len(kinds)
    for kind in kinds[first:] + kinds[:first]:
        if kind in POLICIES:
            found |= _site_times(pipe, call, kind)
        elif kind == "plain":
            found[kind] = _times(pipe, call)
        else:
            with _cut(pipe.transformer):
                found[kind] = _times(pipe, call)
    return found


def _site_times(pipe: Any, call: Mapping[str, Any], site: str) -> dict[str, list[float]]:
    installation = Installation(pipe, parse_policy(POLICIES[site]))
    try:
        times = _times(pipe, call)
    finally:
        installation.remove()
    assert installation.last is not None
    pairs = list(zip(times, installation.last.stats.records, strict=True))
    return {
        f"{site} {kind}": [t for t, record in pairs if record.decision.skips is skips]
        for kind, skips in (("computed", False), ("skipped", True))
    }


def _times(pipe: Any, call: Mapping[str, Any]) -> list[float]:
    times: list[float] = []

    def begin(*_: Any) -> None:
        times.append(-time.thread_time())

    def end(*_: Any) -> None:
        times[-1] += time.thread_time()

    handles = (
        pipe.transformer.register_forward_pre_hook(begin),
        pipe.transformer.register_forward_hook(end),
    )
    try:
        run(pipe, {**call, "generator": torch.Generator().manual_seed(0)})
    finally:
        for handle in handles:
            handle.remove()
    return times


@contextmanager
def _cut(transformer: Any) -> Iterator[None]:
    blocks = transformer.blocks
    transformer.blocks = nn.ModuleList([blocks[0]])
    try:
        yield
    finally:
        transformer.blocks = blocks


def main() -> None:
    """Measures on the demo model and writes what it found."""
    from diffusers import DiffusionPipeline

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=30)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    pipe = DiffusionPipeline.from_pretrained(str(ModelConfig(MODEL).folder))
    pipe.set_progress_bar_config(disable=True)
    found = measure(pipe, asked.rounds)
    patches = pipe.transformer.config.patch_size
    latent = run(pipe, {**CALL, "num_inference_steps": 1})
    tokens = latent[0, 0].numel() // math.prod(patches)
    about = {
        "model": MODEL,
        "tokens": tokens,
        "rounds": asked.rounds,
        "threads": 1,
        "torch": torch.__version__,
    }
    report = {**about, "machine": platform.processor() or platform.machine(), **found}
    asked.out.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
