"""What all contenders share: model, size, steps, guidance, and the prompts with their seeds."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from warpcache_ray.bench.contender import digest
from warpcache_ray.engine.events import Generation
from warpcache_ray.errors import InvalidConfig

CALIBRATION_SEED = 1000
"""Seed of the first calibration prompt; those of the test prompts count from 0."""


@dataclass(frozen=True, slots=True)
class Conditions:
    """A model and how it is sampled, the same for everyone; `fingerprint` identifies the weights."""

    model: str
    fingerprint: str
    height: int = 64
    width: int = 64
    num_frames: int = 17
    steps: int = 50
    guidance_scale: float = 4.0
    dtype: str = "float32"
    device: str = "cpu"

    @property
    def key(self) -> str:
        """Digest of everything but where the model lies."""
        content = asdict(self)
        del content["model"]
        return digest(content)

    def generation(self, prompt: str, seed: int) -> Generation:
        """The request for one prompt."""
        return Generation(
            prompt=prompt,
            seed=seed,
            height=self.height,
            width=self.width,
            num_frames=self.num_frames,
            num_inference_steps=self.steps,
            guidance_scale=self.guidance_scale,
        )

    def pipeline(self) -> Any:
        """A fresh pipeline: nothing that an earlier contender did to one can be in it."""
        from diffusers import DiffusionPipeline

        pipeline = DiffusionPipeline.from_pretrained(self.model, dtype=getattr(torch, self.dtype))
        pipeline.set_progress_bar_config(disable=True)
        return pipeline.to(self.device)


def fingerprint(model: str) -> str:
    """Digest of a pipeline folder's files; of a hub id, the id."""
    folder = Path(model)
    if not folder.is_dir():
        return model
    total = hashlib.sha256()
    for file in sorted(f for f in folder.rglob("*") if f.suffix in {".json", ".safetensors"}):
        total.update(file.relative_to(folder).as_posix().encode())
        total.update(hashlib.sha256(file.read_bytes()).digest())
    return total.hexdigest()[:16]


def read_prompts(path: Path) -> list[str]:
    """The prompts of a text file, one a line."""
    try:
        return [line for line in path.read_text().splitlines() if line]
    except OSError as error:
        raise InvalidConfig(f"{path}: {error.strerror}") from error


def check_disjoint(test: list[str], calibration: list[str]) -> None:
    """Refuses a test on prompts that something was fitted on.

    Raises:
        InvalidConfig: a prompt is in both lists.
    """
    both = sorted(set(test) & set(calibration))
    if both:
        raise InvalidConfig(f"{len(both)} prompts are both for calibration and test: {both[0]!r}")
