"""Measures a model on held-out captions: `python -m warpcache_ray.toyworld.evaluate --model DIR`.

Each caption's video is judged by measurement (see `judge`), the VAE by its reconstruction of
rendered videos. `--truth` judges rendered scenes in place of the model's, to check the judge.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLHunyuanVideo, AutoencoderKLWan, DiffusionPipeline
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from tqdm import tqdm

from warpcache_ray.toyworld.captions import SPEEDS, Scene, Speed, canonical, sample_scene
from warpcache_ray.toyworld.judge import Verdict, judge
from warpcache_ray.toyworld.scene import FRAMES, SIZE, render, sample_layout
from warpcache_ray.toyworld.train.data import HELD_OUT_SEED

Video = NDArray[np.float32]
Maker = Callable[[int, "Example"], Video]

BARS = {
    "shape colour": 90.0,
    "background colour": 90.0,
    "shape kind": 70.0,
    "direction": 80.0,
    "still ones still": 80.0,
    "speed order": 70.0,
    "pan direction": 70.0,
}
VAE_BAR_DB = 30.0
VAE_VIDEOS = 32
_MAX_PSNR_DB = 99.0
_SEEDS_PER_SET = 100_000
_SHEET_ROWS, _SHEET_COLUMNS, _SHEET_SCALE, _CAPTION_PX = 8, 6, 2, 14


@dataclass(frozen=True, slots=True)
class Example:
    """A held-out scene, its caption, and its rendered video (17, 64, 64, 3) in [0, 1]."""

    caption: str
    scene: Scene
    truth: Video


@dataclass(frozen=True, slots=True)
class Result:
    """One measure: its value in per cent or dB (None without a case), number of cases and bar."""

    measure: str
    value: float | None
    cases: int
    bar: float
    unit: str = "%"

    @property
    def passed(self) -> bool:
        """Whether the value reaches the bar."""
        return self.value is not None and self.value >= self.bar

    @property
    def shown(self) -> str:
        """The value with its unit and the number of cases."""
        return "–" if self.value is None else f"{self.value:.1f} {self.unit} (n = {self.cases})"


def held_out(seed: int, shapes: int, count: int) -> list[Example]:
    """`count` examples with that many shapes, from seeds above all training seeds."""
    first = HELD_OUT_SEED + (2 * seed + shapes - 1) * _SEEDS_PER_SET
    return [_example(first + i, shapes) for i in range(count)]


def _example(seed: int, shapes: int) -> Example:
    rng = random.Random(seed)
    scene = sample_scene(rng, shapes)
    return Example(canonical(scene), scene, render(scene, sample_layout(scene, rng)).numpy())


def generator(pipe: Any, steps: int, guidance: float) -> Maker:
    """Makes the model's video for the i-th example, with noise of seed i."""

    def make(index: int, example: Example) -> Video:
        frames = pipe(
            prompt=example.caption,
            height=SIZE,
            width=SIZE,
            num_frames=FRAMES,
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=torch.Generator().manual_seed(index),
            output_type="np",
        ).frames[0]
        return np.nan_to_num(np.asarray(frames, dtype=np.float32))

    return make


def tally(verdicts: Sequence[Verdict], scenes: Sequence[Scene]) -> list[Result]:
    """The measures of `BARS` over the verdicts on the videos of these scenes."""
    shapes = [s for v in verdicts for s in v.shapes]
    named = [s for scene in scenes for s in scene.shapes]
    order = speed_order([(n.speed, s.speed) for n, s in zip(named, shapes, strict=True)])
    counts = {
        "shape colour": _count([s.color_right for s in shapes]),
        "background colour": _count([v.background_right for v in verdicts]),
        "shape kind": _count([s.kind_right for s in shapes]),
        "direction": _count([s.direction_right for s in shapes]),
        "still ones still": _count([s.still_right for s in shapes]),
        "speed order": order,
        "pan direction": _count([v.pan_right for v in verdicts]),
    }
    return [
        Result(name, 100 * right / n if n else None, n, BARS[name])
        for name, (right, n) in counts.items()
    ]


def speed_order(seen: Sequence[tuple[Speed, float | None]]) -> tuple[int, int]:
    """(pairs in the right order, pairs) of all pairs whose captions name different speeds."""
    pairs = [(a, b) for a, b in combinations(seen, 2) if a[0] != b[0]]
    right = 0
    for pair in pairs:
        slower, faster = (speed for _, speed in sorted(pair, key=lambda s: SPEEDS.index(s[0])))
        right += slower is not None and faster is not None and slower < faster
    return right, len(pairs)


def _count(answers: Sequence[bool | None]) -> tuple[int, int]:
    asked = [a for a in answers if a is not None]
    return sum(asked), len(asked)


@torch.inference_mode()
def reconstruction(
    vae: AutoencoderKLHunyuanVideo | AutoencoderKLWan, examples: Sequence[Example]
) -> Result:
    """Mean PSNR of the rendered videos after encoding (the posterior's mode) and decoding."""
    values = []
    for example in tqdm(examples, desc="VAE"):
        video = torch.from_numpy(example.truth * 2 - 1).permute(3, 0, 1, 2)[None]
        latents = vae.encode(video).latent_dist.mode()
        decoded = vae.decode(latents).sample[0].permute(1, 2, 3, 0)
        values.append(psnr(example.truth, ((decoded + 1) / 2).clamp(0, 1).numpy()))
    mean = sum(values) / len(values) if values else None
    return Result("VAE reconstruction", mean, len(values), VAE_BAR_DB, "dB")


def psnr(truth: Video, other: Video) -> float:
    """Peak signal-to-noise ratio in dB over all frames, range [0, 1], at most 99."""
    error = float(np.mean((truth.astype(np.float64) - np.nan_to_num(other)) ** 2))
    return min(_MAX_PSNR_DB, -10 * math.log10(error)) if error > 0 else _MAX_PSNR_DB


def table(one: Sequence[Result], two: Sequence[Result]) -> str:
    """The results on one-shape captions as Markdown, those on two-shape captions beside them."""
    beside = {r.measure: r.shown for r in two}
    rows = [
        f"| {r.measure} | ≥ {r.bar:.0f} {r.unit} | {r.shown} | {'pass' if r.passed else 'fail'} "
        f"| {beside.get(r.measure, '–')} |"
        for r in one
    ]
    head = "| measure | bar | one shape | | two shapes (no bar) |\n|---|---|---|---|---|"
    return "\n".join([head, *rows])


def contact_sheet(examples: Sequence[Example], videos: Sequence[Video]) -> Image.Image:
    """Some frames of the first videos, one row each under its caption."""
    side = SIZE * _SHEET_SCALE
    shown = list(zip(examples, videos, strict=True))[:_SHEET_ROWS]
    height = (side + _CAPTION_PX) * max(1, len(shown))
    sheet = Image.new("RGB", (side * _SHEET_COLUMNS, height), "white")
    draw = ImageDraw.Draw(sheet)
    for row, (example, video) in enumerate(shown):
        top = row * (side + _CAPTION_PX)
        draw.text((2, top + 1), example.caption, fill="black")
        for column, t in enumerate(np.linspace(0, len(video) - 1, _SHEET_COLUMNS).round()):
            frame = Image.fromarray((video[int(t)].clip(0, 1) * 255).round().astype(np.uint8))
            frame = frame.resize((side, side), Image.Resampling.NEAREST)
            sheet.paste(frame, (column * side, top + _CAPTION_PX))
    return sheet


def write(
    out: Path,
    one: Sequence[Result],
    two: Sequence[Result],
    judged: Sequence[tuple[Example, Verdict]],
    settings: dict[str, Any],
) -> str:
    """Writes report.json and report.md into `out`; returns the table."""
    report = {
        "settings": settings,
        "one_shape": [asdict(r) | {"passed": r.passed} for r in one],
        "two_shape": [asdict(r) for r in two],
        "verdicts": [{"caption": e.caption} | asdict(v) for e, v in judged],
    }
    (out / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    lines = table(one, two)
    setting = ", ".join(f"{name} {value}" for name, value in settings.items())
    (out / "report.md").write_text(f"# Toy world evaluation\n\n{setting}\n\n{lines}\n")
    return lines


def evaluate(pipe: Any | None, given: argparse.Namespace) -> str:
    """Judges the pipeline's videos, or the truth; writes the report, returns its table."""
    singles = held_out(given.seed, 1, given.captions)
    examples = singles + held_out(given.seed, 2, given.two_shape)
    make: Maker = generator(pipe, given.steps, given.guidance) if pipe else lambda _, e: e.truth
    videos = [make(i, e) for i, e in enumerate(tqdm(examples, desc="videos"))]
    verdicts = [judge(v, e.scene) for v, e in zip(videos, examples, strict=True)]
    scenes, cut = [e.scene for e in examples], len(singles)
    one, two = tally(verdicts[:cut], scenes[:cut]), tally(verdicts[cut:], scenes[cut:])
    if pipe:
        one.append(reconstruction(pipe.vae, held_out(given.seed, 1, VAE_VIDEOS)))
    given.out.mkdir(parents=True, exist_ok=True)
    contact_sheet(examples, videos).save(given.out / "contact-sheet.png")
    names = ("truth", "seed") if given.truth else ("steps", "guidance", "seed")
    settings = {name: getattr(given, name) for name in names}
    return write(given.out, one, two, list(zip(examples, verdicts, strict=True)), settings)


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, help="diffusers folder")
    parser.add_argument("--truth", action="store_true", help="judge rendered scenes instead")
    parser.add_argument("--captions", type=int, default=64)
    parser.add_argument("--two-shape", type=int, default=16)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--out", type=Path, default=Path("toyworld-evaluation"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    if (given.model is None) != given.truth:
        parser.error("give either --model or --truth")
    torch.set_num_threads(given.threads)
    pipe = None
    if given.model is not None:
        pipe = DiffusionPipeline.from_pretrained(given.model, dtype=torch.float32)
        pipe.set_progress_bar_config(disable=True)
    print(evaluate(pipe, given))


if __name__ == "__main__":
    main()
