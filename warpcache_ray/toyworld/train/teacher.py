"""The Wan demo model as a teacher: its predictions with and without caption for noisy clips."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import WanPipeline
from torch import Tensor

from warpcache_ray.toyworld.captions import vary
from warpcache_ray.toyworld.train.data import draw_scene
from warpcache_ray.toyworld.train.wan import DenseAttention, draw_times, embed_captions

FOLDER = Path(__file__).parents[1] / "wan"


@dataclass(frozen=True, slots=True)
class Lesson:
    """One noisy clip at time `sigma`, its caption, and the velocities that the teacher predicts for it without
    and with the caption; clips and velocities (32, 5, 8, 8) in fp16."""

    noisy: Tensor
    sigma: Tensor
    caption: str
    without: Tensor
    given: Tensor


class Teacher:
    """Makes lessons from clips; each is new, for a student who sees few captions learns them by heart."""

    def __init__(self, clips: Tensor) -> None:
        pipe = WanPipeline.from_pretrained(FOLDER, dtype=torch.float32)
        self.transformer = pipe.transformer.requires_grad_(False)
        self.encoder = pipe.text_encoder.requires_grad_(False)
        self.tokenizer = pipe.tokenizer
        self.transformer.set_attn_processor(DenseAttention())
        self.clips, self.device = clips, "cpu"

    def to(self, device: str) -> None:
        """Moves the teacher's models."""
        self.device = device
        self.transformer.to(device)
        self.encoder.to(device)

    @torch.no_grad()
    def lessons(self, count: int, rng: random.Random) -> list[Lesson]:
        """`count` lessons on different clips."""
        order = rng.sample(range(len(self.clips)), count)
        captions = [vary(draw_scene(random.Random(seed)), rng) for seed in order]
        clean = self.clips[order].float().to(self.device)
        sigma = draw_times(count, self.device)
        s = sigma.view(-1, 1, 1, 1, 1)
        noisy = ((1 - s) * clean + s * torch.randn_like(clean)).half()
        text = embed_captions(self.tokenizer, self.encoder, [*captions, *[""] * count])
        with torch.autocast(self.device, torch.bfloat16):
            out = self.transformer(
                noisy.float().repeat(2, 1, 1, 1, 1),
                sigma.repeat(2) * 1000,
                text,
                return_dict=False,
            )[0]
        given, without = out.half().chunk(2)
        return [Lesson(*x) for x in zip(noisy, sigma, captions, without, given, strict=True)]
