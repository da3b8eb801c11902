"""What the service promises of a family, tried with its configuration and a tiny model, and written down:
`python tests/models/served.py [FAMILY ...]`.

Without names all are tried. The record goes to warpcache_ray/models/served.json, and as a table into the README.
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import tiny
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from table import ROOT, put

from warpcache_ray.config import load_application
from warpcache_ray.engine.checkpoint import Checkpoint
from warpcache_ray.engine.engine import Engine, ModelInfo
from warpcache_ray.engine.events import Control, Generation, Result, StepEvent
from warpcache_ray.errors import Cancelled
from warpcache_ray.models.pipelines import CALLED_BACK, accepted
from warpcache_ray.policy_spec import parse_policy

RECORD = ROOT / "warpcache_ray" / "models" / "served.json"
BEGIN, END = "<!-- families: begin -->", "<!-- families: end -->"
STEPS, STOP = 8, 3
NEVER = parse_policy("never")
EAGER = {"auto": {"max_calls": 4}, "worldcache": {"threshold": 10.0}}
"""Parameters under which the configurations' policies skip steps of a model that has learnt nothing."""

Told = dict[str, Any]


def generation(info: ModelInfo) -> Generation:
    """A small one; each model is told its guidance, and how fast its frames follow each other."""
    side = 2 * info.size_multiple
    frames = 1 + 2 * info.frame_multiple if info.makes == "video" else None
    image = Image.new("RGB", (side, side), (200, 90, 10)) if info.takes_image != "none" else None
    return Generation("a cat", 3, side, side, frames, STEPS, 3.0, image=image, fps=8)


def own_call(name: str, pipeline: Any) -> dict[str, Any]:
    """What a pipeline's documentation calls the guidance and speed of `generation`, and what it needs beside."""
    if name == "hunyuan15":
        pipeline.guider = pipeline.guider.new(guidance_scale=3.0)
        return {}
    if name == "qwen-image":
        return {"true_cfg_scale": 3.0, "negative_prompt": " "}
    beside = {"ltx": {"frame_rate": 8}, "hunyuandit": {"use_resolution_binning": False}}
    return {"guidance_scale": 3.0, **beside.get(name, {})}


def frames_alone(name: str, folder: Path, asked: Generation) -> Any:
    """What the untouched pipeline makes of it."""
    pipeline = DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    given = {n: getattr(asked, n) for n in ("prompt", "height", "width", "num_frames", "image")}
    out = pipeline(
        **{n: value for n, value in given.items() if value is not None},
        **own_call(name, pipeline),
        num_inference_steps=STEPS,
        generator=torch.Generator().manual_seed(asked.seed),
        output_type="np",
    )
    made = out.frames[0] if hasattr(out, "frames") else out.images[:1]
    return (np.asarray(made) * 255).round().astype(np.uint8)


def whole_run(engine: Engine, asked: Generation) -> tuple[Result, Checkpoint | None]:
    """Uncached: each step is told, in order. With the checkpoint after `STOP` steps, if there is one."""
    steps: list[int] = []
    kept: list[Checkpoint] = []

    def heard(event: StepEvent) -> Control:
        steps.append(event.index)
        if event.checkpoint is not None and event.index + 1 == STOP:
            kept.append(event.checkpoint())
        return Control()

    result = engine.generate(asked, NEVER, heard)
    assert steps == list(range(STEPS))
    return result, kept[0] if kept else None


def ends_when_told(engine: Engine, asked: Generation) -> None:
    """A cancelled run starts no further step."""
    steps: list[int] = []

    def stop(event: StepEvent) -> Control:
        steps.append(event.index)
        return Control(cancel=event.index + 1 == STOP)

    try:
        engine.generate(asked, NEVER, stop)
    except Cancelled:
        assert len(steps) == STOP
    else:
        raise AssertionError(f"not cancelled after {steps}")


def skips(engine: Engine, asked: Generation, name: str) -> str:
    """The configuration's policy skips; its name."""
    policy = load_application(ROOT / "configs" / f"{name}.yaml").default_policy
    eager: Any = replace(policy, **EAGER[policy.name])
    first = engine.generate(asked, eager)
    assert first.stats.hits > 0
    assert first.latents.isfinite().all()
    assert {r.branch for r in first.stats.records} <= {"cond", "uncond", "cond_uncond"}
    assert engine.generate(asked, eager).latents_sha256 == first.latents_sha256
    return str(policy.name)


def tried(name: str, folder: Path) -> Told:
    """All of these; what families differ in.

    Raises:
        AssertionError: a promise is broken.
    """
    engine = Engine.load(folder)
    info = engine.info
    asked = generation(info)
    whole, checkpoint = whole_run(engine, asked)
    np.testing.assert_array_equal(whole.frames, frames_alone(name, folder, asked))
    assert whole.frames.std() > 0
    ends_when_told(engine, asked)
    if checkpoint is not None:
        rest = engine.generate(asked, NEVER, checkpoint=checkpoint)
        assert rest.resumed_at == STOP
        assert rest.latents_sha256 == whole.latents_sha256
        np.testing.assert_array_equal(rest.frames, whole.frames)
    return {
        "pipeline": info.pipeline,
        "makes": info.makes,
        "image": info.takes_image,
        "steps": "callback" if CALLED_BACK in accepted(type(engine.pipeline)) else "scheduler",
        "resumed": checkpoint is not None,
        "policy": skips(engine, asked, name),
    }


def folder_of(name: str, root: Path) -> Path:
    """A family's tiny model, saved."""
    tiny.build(name).save_pretrained(root / name)
    return root / name


def markdown(record: Told) -> str:
    """The table of a record."""
    head = ("`configs/`", "pipeline", "makes", "from an image", "goes on after a loss", "policy")
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name, told in record.items():
        on = "✓" if told["resumed"] else "starts anew"
        image = "–" if told["image"] == "none" else told["image"]
        cells = (f"`{name}`", f"`{told['pipeline']}`", told["makes"], image, on, told["policy"])
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(names: list[str]) -> None:
    """Tries the named families, all without names, and writes record and table."""
    record: Told = json.loads(RECORD.read_text()) if names else {}
    with tempfile.TemporaryDirectory() as root:
        for name in names or tiny.TINY:
            record[name] = tried(name, folder_of(name, Path(root)))
            print(name, record[name], flush=True)
    record = {name: record[name] for name in tiny.TINY if name in record}
    RECORD.write_text(json.dumps(record, indent=1) + "\n")
    put(markdown(record), BEGIN, END)


if __name__ == "__main__":
    main(sys.argv[1:])
