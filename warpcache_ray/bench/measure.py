"""One contender on one prompt: what it made, against the uncached reference."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from warpcache_ray.bench.conditions import Conditions
from warpcache_ray.bench.contender import Setting, digest
from warpcache_ray.bench.counting import Watch, watched, work_done
from warpcache_ray.bench.rivals import KINDS
from warpcache_ray.bench.rivals.made import Made, run
from warpcache_ray.quality.fidelity import psnr, ssim
from warpcache_ray.quality.gmsd import gmsd
from warpcache_ray.quality.motion import motion_ratio

ERROR_CHARACTERS = 400


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt and its seed."""

    text: str
    seed: int


@dataclass(frozen=True, slots=True)
class Reference:
    """The uncached video of a prompt, with the work it took and the bytes it held."""

    frames: NDArray[np.uint8]
    work: list[list[float]]
    growth: int


def row_key(setting: Setting, prompt: Prompt, conditions: Conditions) -> str:
    """Identifies a measurement, so that none is made twice."""
    return digest([setting.key, prompt.text, prompt.seed, conditions.key])


def reference(conditions: Conditions, prompt: Prompt, folder: Path) -> Reference:
    """The reference of a prompt, from `folder` if it has been made before."""
    file = folder / f"{digest([prompt.text, prompt.seed, conditions.key])}.npz"
    if not file.exists():
        pipeline = conditions.pipeline()
        with watched(pipeline) as watch:
            made = run(pipeline, conditions.generation(prompt.text, prompt.seed))
        account = json.dumps({"work": watch.work, "growth": watch.growth})
        folder.mkdir(parents=True, exist_ok=True)
        # Written aside first: a file that exists is whole.
        draft = file.with_suffix(f".{prompt.seed}.tmp")
        with draft.open("wb") as out:
            np.savez_compressed(out, frames=made.frames, account=np.array(account))
        draft.replace(file)
    with np.load(file) as kept:
        return Reference(kept["frames"], **json.loads(str(kept["account"])))


def measure(
    setting: Setting, prompt: Prompt, conditions: Conditions, against: Reference
) -> dict[str, Any]:
    """The row of one contender on one prompt; what it raises becomes the row's `error`."""
    row: dict[str, Any] = {
        "key": row_key(setting, prompt, conditions),
        "method": setting.method,
        "label": setting.label,
        "setting": setting.key,
        "prompt": prompt.text,
        "seed": prompt.seed,
        "model": conditions.fingerprint,
        "steps": conditions.steps,
        "guidance_scale": conditions.guidance_scale,
    }
    try:
        made, watch = _generate(setting, prompt, conditions)
    # Whatever a foreign library raises is a finding of the bench, not the end of it.
    except Exception as error:
        return {**row, "error": describe(error)}
    return {**row, **_score(made, watch, conditions.steps, against)}


def describe(error: Exception) -> str:
    """Kind and message, on one line."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text[:ERROR_CHARACTERS]


def time_pair(setting: Setting, prompt: Prompt, conditions: Conditions) -> dict[str, Any]:
    """Seconds of the denoising loop, uncached and then with the contender on the same prompt."""
    row: dict[str, Any] = {
        "key": row_key(setting, prompt, conditions),
        "setting": setting.key,
        "seed": prompt.seed,
    }
    pipeline = conditions.pipeline()
    with watched(pipeline, work=False, decode=False) as plain:
        run(pipeline, conditions.generation(prompt.text, prompt.seed))
    try:
        _, watch = _generate(setting, prompt, conditions, timing=True)
    except Exception as error:
        return {**row, "error": describe(error)}
    return {**row, "uncached_s": plain.seconds, "seconds": watch.seconds}


def _generate(
    setting: Setting, prompt: Prompt, conditions: Conditions, timing: bool = False
) -> tuple[Made, Watch]:
    pipeline = conditions.pipeline()
    kind = KINDS[setting.kind]
    with (
        watched(pipeline, work=not timing, decode=not timing) as watch,
        kind(pipeline, setting.options, conditions.steps) as generate,
    ):
        return generate(conditions.generation(prompt.text, prompt.seed)), watch


def _score(made: Made, watch: Watch, steps: int, against: Reference) -> dict[str, Any]:
    work = work_done(watch.work, against.work, steps)
    moved = motion_ratio(made.frames, against.frames)
    same = np.array_equal(made.frames, against.frames)
    held = max(0, watch.growth - against.growth)
    return {
        "calls": work.calls,
        "blocks": work.blocks,
        "psnr": psnr(made.frames, against.frames),
        "ssim": ssim(made.frames, against.frames),
        "gmsd": gmsd(made.frames, against.frames),
        "motion": moved if math.isfinite(moved) else None,
        "cache_bytes": held if made.cache_bytes is None else made.cache_bytes,
        "noop": bool(same and work.blocks == 1),
    }
