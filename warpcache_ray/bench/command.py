"""`warpcache bench`: measures all contenders under the same conditions and writes the report."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from warpcache_ray.bench.conditions import (
    CALIBRATION_SEED,
    Conditions,
    check_disjoint,
    read_prompts,
)
from warpcache_ray.bench.contender import Setting, read_contenders, thin
from warpcache_ray.bench.markdown import render
from warpcache_ray.bench.measure import Prompt, row_key
from warpcache_ray.bench.plot import plot
from warpcache_ray.bench.report import FAST, Score, as_json, score, worth_timing
from warpcache_ray.bench.rows import Rows
from warpcache_ray.bench.runner import Plan, quiet, resolve, run_quality, run_timing
from warpcache_ray.errors import InvalidConfig

HERE = Path(__file__).parent
PROMPTS = HERE / "prompts" / "toyworld.txt"
CALIBRATION_PROMPTS = HERE / "prompts" / "toyworld-calibration.txt"

SCAN_PROMPTS = 3
TIMED_PROMPTS = 8
MAGCACHE_PROMPTS = 4
QUICK_PROMPTS, QUICK_SETTINGS, QUICK_S = 2, 3, 480.0
"""A quick run's size, and when it starts nothing more: what is under way then and the report fit into ten minutes."""


@dataclass(frozen=True, slots=True)
class Request:
    """What to compare, and how thoroughly.

    `count`: of the test prompts (None: all). `only` and `redo`: methods to run at all, and to measure again.
    """

    conditions: Conditions
    contenders: Path
    out: Path
    work: Path
    prompts: Path = PROMPTS
    calibration_prompts: Path = CALIBRATION_PROMPTS
    count: int | None = None
    workers: int = 1
    quick: bool = False
    scan: bool = False
    timed: int = TIMED_PROMPTS
    only: tuple[str, ...] = ()
    redo: tuple[str, ...] = ()


def contenders_for(model: str) -> Path:
    """The contenders file that comes with a model: of `toyworld/wan` it is `toyworld-wan.yaml`.

    Raises:
        InvalidConfig: there is none.
    """
    name = "-".join(Path(model).parts[-2:])
    file = HERE / "contenders" / f"{name}.yaml"
    if not file.exists():
        known = ", ".join(sorted(f.stem for f in file.parent.glob("*.yaml")))
        raise InvalidConfig(f"no contenders file for {model!r} (there are: {known}); name one")
    return file


def bench(request: Request) -> str:
    """Measures what isn't measured yet, writes OUT.json, .md and .png, and returns the Markdown.

    Raises:
        InvalidConfig: a file can't be used, or test and calibration prompts overlap.
    """
    began = time.monotonic()
    settings = _settings(request)
    prompts, calibration = _prompts(request)
    quiet()
    until = began + QUICK_S if request.quick else None
    plan = Plan(request.conditions, request.work, request.workers, until)
    settings = resolve(plan, settings, calibration[:MAGCACHE_PROMPTS])
    rows, timings = (Rows(request.work / f"{name}.jsonl") for name in ("rows", "timings"))
    for store in (rows, timings):
        again = [s for s in settings if s.method in request.redo]
        store.forget(row_key(s, p, request.conditions) for s in again for p in prompts)

    def scores() -> list[Score]:
        return [score(s, prompts, request.conditions, rows, timings) for s in settings]

    run_quality(plan, settings, prompts, rows)
    if plan.expired:
        # Better all settings on fewer prompts than some on more.
        keys = {p: [row_key(s, p, request.conditions) for s in settings] for p in prompts}
        prompts = [p for p in prompts if all(k in rows for k in keys[p])] or prompts[:1]
    timed = 0 if request.scan or request.quick else request.timed
    run_timing(plan, worth_timing(settings, scores()), prompts[:timed], timings)
    return _write(request, settings, prompts, scores())


def _settings(request: Request) -> list[Setting]:
    settings = read_contenders(request.contenders)
    methods = {s.method for s in settings}
    for asked in (*request.only, *request.redo):
        if asked not in methods:
            known = ", ".join(sorted(methods))
            raise InvalidConfig(f"no method {asked!r} in {request.contenders}; there are: {known}")
    if request.only:
        settings = [s for s in settings if s.method in request.only]
    return thin(settings, QUICK_SETTINGS) if request.quick else settings


def _prompts(request: Request) -> tuple[list[Prompt], list[Prompt]]:
    """Those to measure on, and those for calibration. A scan is for choosing settings: it leaves the test alone."""
    test = read_prompts(request.prompts)
    calibration = read_prompts(request.calibration_prompts)
    check_disjoint(test, calibration)
    fitting = [Prompt(text, CALIBRATION_SEED + i) for i, text in enumerate(calibration)]
    if request.scan:
        return fitting[MAGCACHE_PROMPTS:][: request.count or SCAN_PROMPTS], fitting
    count = request.count or (QUICK_PROMPTS if request.quick else len(test))
    return [Prompt(text, seed) for seed, text in enumerate(test)][:count], fitting


def _write(
    request: Request, settings: Sequence[Setting], prompts: Sequence[Prompt], scores: list[Score]
) -> str:
    steps = request.conditions.steps
    about = _about(request, prompts)
    text = render(about, scores, steps)
    request.out.parent.mkdir(parents=True, exist_ok=True)
    report = as_json(about, scores, settings, steps)
    request.out.with_suffix(".json").write_text(json.dumps(report, indent=1, default=list) + "\n")
    request.out.with_suffix(".md").write_text(text)
    plot(
        scores, steps, f"{about['model']}, prompts: {len(prompts)}", request.out.with_suffix(".png")
    )
    return text


def _about(request: Request, prompts: Sequence[Prompt]) -> dict[str, Any]:
    conditions = asdict(request.conditions)
    return {
        "model": "/".join(Path(conditions.pop("model")).parts[-2:]),
        "conditions": conditions,
        "prompts": len(prompts),
        "prompts_fast": sum(FAST in prompt.text.split() for prompt in prompts),
        "prompts_file": request.calibration_prompts.name if request.scan else request.prompts.name,
        "contenders": request.contenders.name,
        "machine": platform.machine(),
        "versions": {name: _version(name) for name in ("torch", "diffusers", "cache-dit")},
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
