"""Policies side by side on one model, the same prompts and seeds: `python -m warpcache_ray.bench.compare`.

Each prompt is generated uncached and under every contender in turn, in one process, so that a machine that is slow
for a while is slow for all; speed is the ratio of the denoising loops' times, the median over prompts.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
import yaml
from tqdm import tqdm

from warpcache_ray.core.policy import Policy
from warpcache_ray.engine.engine import Engine
from warpcache_ray.engine.events import Generation, Result
from warpcache_ray.policy_spec import describe_policy, parse_policy
from warpcache_ray.quality.fidelity import psnr, ssim

NEVER = parse_policy("never")


@dataclass(frozen=True, slots=True)
class Contender:
    """A policy under a name, or the uncached model with fewer `steps`."""

    name: str
    policy: Policy = NEVER
    steps: int | None = None


@dataclass(frozen=True, slots=True)
class Score:
    """One contender over all prompts; `calls` and `blocks` are the shares that were computed."""

    name: str
    calls: float
    blocks: float
    speedup: float
    psnr: float
    psnr_worst: float
    ssim: float
    ssim_worst: float
    cache_mb: float
    operators: dict[str, int]


def compare(
    engine: Engine, generations: Sequence[Generation], contenders: Sequence[Contender]
) -> list[Score]:
    """Runs everything and scores each contender against the uncached output."""
    rows: dict[str, list[tuple[Result, Result]]] = {c.name: [] for c in contenders}
    # The first steps of a process are slow; no contender is to pay for them.
    engine.generate(replace(generations[0], num_inference_steps=1), NEVER)
    for generation in tqdm(generations, desc="prompts"):
        plain = engine.generate(generation, NEVER)
        for contender in contenders:
            steps = contender.steps or generation.num_inference_steps
            asked = replace(generation, num_inference_steps=steps)
            rows[contender.name].append((engine.generate(asked, contender.policy), plain))
    return [_score(name, pairs) for name, pairs in rows.items()]


def _score(name: str, pairs: list[tuple[Result, Result]]) -> Score:
    fidelity = [psnr(r.frames, p.frames) for r, p in pairs]
    likeness = [ssim(r.frames, p.frames) for r, p in pairs]
    stats = [r.stats for r, _ in pairs]
    plain_calls = sum(len(p.stats.records) for _, p in pairs)
    plain_blocks = sum(p.stats.blocks_run for _, p in pairs)
    return Score(
        name=name,
        calls=sum(s.recomputed for s in stats) / plain_calls,
        blocks=sum(s.blocks_run for s in stats) / plain_blocks,
        speedup=statistics.median(p.timings.denoise / r.timings.denoise for r, p in pairs),
        psnr=statistics.mean(fidelity),
        psnr_worst=min(fidelity),
        ssim=statistics.mean(likeness),
        ssim_worst=min(likeness),
        cache_mb=max(s.peak_cache_bytes for s in stats) / 1e6,
        operators={
            k: sum(s.summary()[k] for s in stats) for k in ("reused", "warped", "blend", "spatial")
        },
    )


def markdown(scores: Sequence[Score]) -> str:
    """The scores as a table."""
    head = "| policy | share of calls | share of blocks | speedup | PSNR (worst) | SSIM (worst) | cache MB |"
    lines = [head, "|---|---|---|---|---|---|---|"]
    lines += [
        f"| {s.name} | {s.calls:.2f} | {s.blocks:.2f} | {s.speedup:.2f}× | {s.psnr:.1f} ({s.psnr_worst:.1f}) dB "
        f"| {s.ssim:.4f} ({s.ssim_worst:.4f}) | {s.cache_mb:.1f} |"
        for s in scores
    ]
    return "\n".join(lines)


def read_contenders(path: Path) -> list[Contender]:
    """Contenders from a YAML mapping of names to policies, or to `steps: n`."""
    found = []
    for name, spec in yaml.safe_load(path.read_text()).items():
        steps = spec.get("steps") if isinstance(spec, dict) and "name" not in spec else None
        found.append(Contender(name, steps=steps) if steps else Contender(name, parse_policy(spec)))
    return found


def _report(arguments: argparse.Namespace, scores: list[Score], given: list[Contender]) -> Any:
    return {
        "model": "/".join(Path(arguments.model).parts[-2:]),
        "prompts": arguments.prompts.name,
        "count": arguments.count,
        "steps": arguments.steps,
        "guidance_scale": arguments.guidance_scale,
        "threads": arguments.threads,
        "machine": platform.machine(),
        "versions": {"torch": torch.__version__, "diffusers": diffusers.__version__},
        "contenders": {c.name: {"steps": c.steps, **describe_policy(c.policy)} for c in given},
        "scores": [asdict(s) for s in scores],
    }


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    here = Path(__file__).parent
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=str(here.parent / "toyworld" / "wan"))
    parser.add_argument("--contenders", type=Path, default=here / "contenders.yaml")
    parser.add_argument("--prompts", type=Path, default=here / "prompts" / "toyworld.txt")
    parser.add_argument("--count", type=int, default=16)
    parser.add_argument(
        "--size", type=int, nargs=3, default=(64, 64, 17), help="height width frames"
    )
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--guidance-scale", type=float, default=4.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--out", type=Path, required=True, help="report, without its ending")
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    height, width, frames = given.size
    prompts = given.prompts.read_text().splitlines()[: given.count]
    generations = [
        Generation(prompt, seed, height, width, frames, given.steps, given.guidance_scale)
        for seed, prompt in enumerate(prompts)
    ]
    contenders = read_contenders(given.contenders)
    scores = compare(Engine.load(given.model, given.dtype, given.device), generations, contenders)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.with_suffix(".json").write_text(
        json.dumps(_report(given, scores, contenders), indent=1) + "\n"
    )
    given.out.with_suffix(".md").write_text(markdown(scores) + "\n")
    print(markdown(scores))


if __name__ == "__main__":
    main()
