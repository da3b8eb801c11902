"""Runs what has not been measured yet, on one or several processes."""

from __future__ import annotations

import gc
import json
import multiprocessing
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from warpcache_ray.bench.conditions import Conditions
from warpcache_ray.bench.contender import Setting
from warpcache_ray.bench.measure import Prompt, Reference, measure, reference, row_key, time_pair
from warpcache_ray.bench.rivals.diffusers_hooks import magcache_ratios
from warpcache_ray.bench.rows import Row, Rows

CALIBRATE = "calibrate"
"""As `mag_ratios` it asks for MagCache's own calibration on the calibration prompts."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Conditions, work folder, number of processes, and when (time.monotonic) to start nothing more."""

    conditions: Conditions
    work: Path
    workers: int = 1
    until: float | None = None

    @property
    def expired(self) -> bool:
        """Whether the time is up."""
        return self.until is not None and time.monotonic() > self.until


def resolve(
    plan: Plan, settings: Sequence[Setting], calibration: Sequence[Prompt]
) -> list[Setting]:
    """The settings with constants that are to be calibrated filled in (kept in the work folder)."""
    if not any(s.options.get("mag_ratios") == CALIBRATE for s in settings):
        return list(settings)
    seeds = "-".join(str(p.seed) for p in calibration)
    file = plan.work / f"magcache-{plan.conditions.key}-{seeds}.json"
    if not file.exists():
        generations = [plan.conditions.generation(p.text, p.seed) for p in calibration]
        ratios = magcache_ratios(plan.conditions.pipeline(), generations)
        plan.work.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(ratios))
    ratios = [round(ratio, 5) for ratio in json.loads(file.read_text())]
    return [
        replace(s, options={**s.options, "mag_ratios": ratios})
        if s.options.get("mag_ratios") == CALIBRATE
        else s
        for s in settings
    ]


def _missing(
    plan: Plan, settings: Sequence[Setting], prompts: Sequence[Prompt], rows: Rows
) -> list[tuple[Setting, Prompt]]:
    """What has no row yet, prompt by prompt."""
    return [
        (setting, prompt)
        for prompt in prompts
        for setting in settings
        if row_key(setting, prompt, plan.conditions) not in rows
    ]


def run_quality(
    plan: Plan, settings: Sequence[Setting], prompts: Sequence[Prompt], rows: Rows
) -> None:
    """Measures each setting on each prompt, prompt by prompt, so that an early end is fair to all."""
    todo = _missing(plan, settings, prompts, rows)
    fresh = list(dict.fromkeys(prompt for _, prompt in todo))
    with _executor(plan.workers) as pool:
        jobs = [(_make_reference, plan, prompt) for prompt in fresh]
        for _ in _completed(plan, pool, jobs, "references"):
            pass
        measuring = [(_measure, plan, *pair) for pair in todo]
        for row in _completed(plan, pool, measuring, "contenders"):
            rows.add(row)


def run_timing(
    plan: Plan, settings: Sequence[Setting], prompts: Sequence[Prompt], rows: Rows
) -> None:
    """Times each setting beside an uncached run of the same prompt; always one after the other, in this process."""
    todo = _missing(plan, settings, prompts, rows)
    if todo:
        # The first steps of a process are slow; nobody is to pay for them.
        time_pair(*todo[0], replace(plan.conditions, steps=2))
    for setting, prompt in tqdm(todo, desc="timing"):
        if plan.expired:
            return
        rows.add(time_pair(setting, prompt, plan.conditions))


def quiet(threads: int = 1) -> None:
    """Sets this process up to measure: one thread, no libraries' progress bars."""
    import diffusers
    import transformers

    torch.set_num_threads(threads)
    # What is loaded by now stays; out of the collector's sight it doesn't slow down each count of what is held.
    gc.collect()
    gc.freeze()
    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
        library.utils.logging.set_verbosity_error()


def _make_reference(plan: Plan, prompt: Prompt) -> None:
    _reference(plan, prompt)


def _measure(plan: Plan, setting: Setting, prompt: Prompt) -> Row:
    return measure(setting, prompt, plan.conditions, _reference(plan, prompt))


# Settings come prompt by prompt, so a process needs few references at a time.
@lru_cache(maxsize=4)
def _reference(plan: Plan, prompt: Prompt) -> Reference:
    return reference(plan.conditions, prompt, plan.work / "references")


Job = tuple[Any, ...]


def _completed(plan: Plan, pool: Executor | None, jobs: Sequence[Job], what: str) -> Iterator[Any]:
    """Results of the jobs (function, then its arguments) as they come; none is started when the time is up."""
    with tqdm(total=len(jobs), desc=what, disable=not jobs) as bar:
        for result in _in_turn(plan, jobs) if pool is None else _at_once(plan, pool, jobs):
            bar.update()
            yield result


def _in_turn(plan: Plan, jobs: Iterable[Job]) -> Iterator[Any]:
    for function, *arguments in jobs:
        if plan.expired:
            return
        yield function(*arguments)


def _at_once(plan: Plan, pool: Executor, jobs: Iterable[Job]) -> Iterator[Any]:
    futures: list[Future[Any]] = [pool.submit(*job) for job in jobs]
    try:
        for future in as_completed(futures):
            yield future.result()
            if plan.expired:
                # Those under way are worth waiting for.
                for waiting in futures:
                    waiting.cancel()
                yield from (f.result() for f in futures if f.running())
                return
    finally:
        for future in futures:
            future.cancel()


@contextmanager
def _executor(workers: int) -> Iterator[Executor | None]:
    """A pool of fresh processes; None for one worker, which is this process."""
    if workers == 1:
        yield None
        return
    context = multiprocessing.get_context("spawn")
    setup: Callable[[], None] = quiet
    with ProcessPoolExecutor(workers, context, initializer=setup) as pool:
        yield pool
