"""What the models learn from: scenes drawn by seed, their videos, and a linear code for both architectures."""

from __future__ import annotations

import random
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from warpcache_ray.toyworld import codec, folder
from warpcache_ray.toyworld.captions import Scene, sample_scene
from warpcache_ray.toyworld.scene import render, sample_layout

HELD_OUT_SEED = 10_000_000
"""Training scenes have seeds below this; evaluation uses seeds above it."""


def draw_scene(rng: random.Random) -> Scene:
    """A training scene; three of four have one shape."""
    return sample_scene(rng, 2 if rng.random() < 0.25 else 1)


def draw(seed: int) -> Tensor:
    """The video (17, 64, 64, 3) in [-1, 1] of the scene that `draw_scene` makes of this seed."""
    rng = random.Random(seed)
    scene = draw_scene(rng)
    return render(scene, sample_layout(scene, rng)) * 2 - 1


def load_code(out: Path) -> codec.LinearCode:
    """The linear code of the run, fitted on its first use."""
    path = out / "code.safetensors"
    if not path.exists():
        videos = torch.stack([draw(seed) for seed in tqdm(range(400), desc="linear code")])
        codec.fit(videos, folder.LATENT_CHANNELS).save(path)
    return codec.LinearCode.load(path)


def load_clips(out: Path, code: codec.LinearCode, clips: int) -> Tensor:
    """(clips, 32, 5, 8, 8) fp16 latents of the training scenes, encoded once."""
    path = out / "latents.pt"
    if not path.exists():
        parts = [
            code.encode(torch.stack([draw(seed) for seed in range(start, start + 100)])).half()
            for start in tqdm(range(0, clips, 100), desc="clips")
        ]
        torch.save(torch.cat(parts), path)
    latents: Tensor = torch.load(path, weights_only=True)
    return latents
