"""From rows to scores, fronts and a report."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from operator import attrgetter
from typing import Any

from warpcache_ray.bench.conditions import Conditions
from warpcache_ray.bench.contender import Setting
from warpcache_ray.bench.fronts import TARGETS, Point, cost_at, front, nearest
from warpcache_ray.bench.measure import Prompt, row_key
from warpcache_ray.bench.rows import Row, Rows
from warpcache_ray.policy_spec import summarize_policy

OURS = "auto"
"""Methods whose names begin so are compared with the best of all others."""
FAST = "fast"
"""Prompts with this word are the fast-motion subset."""


@dataclass(frozen=True, slots=True)
class Score:
    """One setting over the prompts it was measured on; means, but where the name says otherwise.

    `complete`: measured on every prompt without an error. Only complete settings count in fronts.
    """

    method: str
    kind: str
    label: str
    prompts: int
    complete: bool
    noop: bool
    error: str | None
    calls: float | None = None
    blocks: float | None = None
    psnr: float | None = None
    psnr_worst: float | None = None
    worst_prompt: str | None = None
    psnr_fast: float | None = None
    ssim: float | None = None
    ssim_worst: float | None = None
    gmsd: float | None = None
    gmsd_worst: float | None = None
    motion: float | None = None
    motion_least: float | None = None
    cache_bytes: int | None = None
    speedup: float | None = None
    timed: int = 0


def score(
    setting: Setting,
    prompts: Sequence[Prompt],
    conditions: Conditions,
    rows: Rows,
    timings: Rows,
) -> Score:
    """The score of one setting."""
    keys = [row_key(setting, prompt, conditions) for prompt in prompts]
    found = [rows.by_key[key] for key in keys if key in rows]
    good = [row for row in found if "error" not in row]
    error = next((row["error"] for row in found if "error" in row), None)
    names = (setting.method, setting.kind, setting.label)
    if not good:
        return Score(*names, 0, False, False, error)
    pairs = [timings.by_key[key] for key in keys if key in timings]
    ratios = [pair["uncached_s"] / pair["seconds"] for pair in pairs if "error" not in pair]
    worst = min(good, key=lambda row: float(row["psnr"]))
    return Score(
        *names,
        prompts=len(good),
        complete=len(good) == len(prompts),
        noop=all(row["noop"] for row in good),
        error=error,
        calls=_mean(good, "calls"),
        blocks=_mean(good, "blocks"),
        psnr=_mean(good, "psnr"),
        psnr_worst=worst["psnr"],
        worst_prompt=worst["prompt"],
        psnr_fast=_mean([row for row in good if FAST in row["prompt"].split()], "psnr"),
        ssim=_mean(good, "ssim"),
        ssim_worst=min(row["ssim"] for row in good),
        gmsd=_mean(good, "gmsd"),
        gmsd_worst=max(row["gmsd"] for row in good),
        motion=_mean(good, "motion"),
        motion_least=min((r["motion"] for r in good if r["motion"] is not None), default=None),
        cache_bytes=max(row["cache_bytes"] for row in good),
        speedup=statistics.median(ratios) if ratios else None,
        timed=len(ratios),
    )


def _mean(rows: Sequence[Row], name: str) -> float | None:
    values = [row[name] for row in rows if row[name] is not None]
    return statistics.fmean(values) if values else None


def costs(scores: Sequence[Score], steps: int) -> dict[str, dict[str, Any]]:
    """Per method: what it needs at each target, in several currencies, and its state in words."""
    return {
        method: {
            "state": state(own),
            "calls": _at_targets(own, attrgetter("calls")),
            "block_calls": _at_targets(own, lambda s: (s.blocks or 0) * steps),
            "calls_fast": _at_targets(own, attrgetter("calls"), fast=True),
            "front": [list(p) for p in front(points(own, attrgetter("calls")))],
            "settings": len(own),
            "within": sum(28 <= s.psnr <= 42 for s in own if s.psnr is not None and s.complete),
        }
        for method, own in by_method(scores).items()
    }


def lead(costs: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Per target: the calls of `auto`, those of the best of all others and its name, and their ratio; a target that
    either doesn't reach is left out."""
    found = {}
    for target in (f"{t:g}" for t in TARGETS):
        reached = [(c["calls"][target], m) for m, c in costs.items() if c["calls"][target]]
        ours = [(calls, m) for calls, m in reached if m.startswith(OURS)]
        others = [(calls, m) for calls, m in reached if not m.startswith(OURS)]
        if ours and others:
            (calls, _), (best, method) = min(ours), min(others)
            found[target] = {"auto": calls, "best": best, "method": method, "ratio": best / calls}
    return found


def _at_targets(
    scores: Sequence[Score], cost: Callable[[Score], float | None], fast: bool = False
) -> dict[str, float | None]:
    along = front(points(scores, cost, fast))
    return {f"{target:g}": cost_at(along, target) for target in TARGETS}


def points(
    scores: Sequence[Score], cost: Callable[[Score], float | None], fast: bool = False
) -> list[Point]:
    """The measured points of complete settings."""
    found = []
    for each in scores:
        paid, quality = cost(each), each.psnr_fast if fast else each.psnr
        if each.complete and paid and quality is not None:
            found.append(Point(paid, quality))
    return found


def by_method(scores: Sequence[Score]) -> dict[str, list[Score]]:
    """The scores of each method, controls left out."""
    found: dict[str, list[Score]] = {}
    for each in scores:
        if each.kind != "control":
            found.setdefault(each.method, []).append(each)
    return found


def state(scores: Sequence[Score]) -> str:
    """`ok`, `no-op` (nothing changes at any setting), `failed: why`, or `incomplete`."""
    if all(s.noop for s in scores):
        return "no-op"
    errors = [s.error for s in scores if s.error]
    if errors and not any(s.complete for s in scores):
        return f"failed: {errors[0]}"
    return "ok" if all(s.complete or s.error for s in scores) else "incomplete"


def worth_timing(settings: Sequence[Setting], scores: Sequence[Score]) -> list[Setting]:
    """Of each method the settings nearest to the targets: what the speed-up is measured on."""
    chosen: set[tuple[str, str]] = set()
    for method, own in by_method(scores).items():
        named = [
            (s.label, Point(s.calls, s.psnr))
            for s in own
            if s.complete and not s.noop and s.calls is not None and s.psnr is not None
        ]
        best = set(front(point for _, point in named))
        leading = [(label, point) for label, point in named if point in best]
        chosen |= {(method, label) for t in TARGETS if (label := nearest(leading, t)) is not None}
    return [s for s in settings if (s.method, s.label) in chosen]


def as_json(
    about: dict[str, Any], scores: Sequence[Score], settings: Sequence[Setting], steps: int
) -> dict[str, Any]:
    """The whole report."""
    options = {(s.method, s.label): summarize_policy(s.options) for s in settings}
    methods = costs(scores, steps)
    return {
        **about,
        "lead": lead(methods),
        "methods": methods,
        "scores": [{**asdict(s), "options": options[s.method, s.label]} for s in scores],
    }
