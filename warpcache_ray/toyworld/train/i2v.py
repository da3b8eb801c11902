"""The stages of the image-to-video demo model; it goes on from the text-to-video one."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, WanImageToVideoPipeline
from torch import Tensor
from tqdm import tqdm

from warpcache_ray.toyworld import folder, folder_i2v
from warpcache_ray.toyworld.scene import FRAMES
from warpcache_ray.toyworld.train.data import draw, draw_scene, load_clips, load_code
from warpcache_ray.toyworld.train.loop import Options, optimizers, run
from warpcache_ray.toyworld.train.wan import (
    DenseAttention,
    draw_captions,
    embed_captions,
    flow_loss,
)

START = Path(__file__).parents[1] / "wan"
MAX_CLIPS = 4_000
"""How many of the clips have their first frame encoded; a memory of 60 MB."""
ENCODED_AT_ONCE = 20


def load_start(options: Options) -> Any:
    """The pipeline whose weights the training goes on from."""
    return DiffusionPipeline.from_pretrained(options.start_from or START, dtype=torch.float32)


def load_conditions(out: Path, vae: Any, clips: int) -> Tensor:
    """(clips, 36, 5, 8, 8) fp16: what stands beside the noise for the first frame of each clip, encoded once."""
    path = out / "conditions.pt"
    if not path.exists():
        parts = []
        for start in tqdm(range(0, clips, ENCODED_AT_ONCE), desc="first frames"):
            seeds = range(start, min(start + ENCODED_AT_ONCE, clips))
            images = torch.stack([draw(seed)[0] for seed in seeds]).permute(0, 3, 1, 2)
            parts.append(folder_i2v.condition(vae, images, FRAMES).half())
        torch.save(torch.cat(parts), path)
    conditions: Tensor = torch.load(path, weights_only=True)
    return conditions


def train_transformer(options: Options) -> None:
    """Flow matching as in the text-to-video model's training, each clip beside its own first frame."""
    pipe = load_start(options)
    count = min(options.clips, MAX_CLIPS)
    clips = load_clips(options.out, load_code(options.out), options.clips)[:count]
    conditions = load_conditions(options.out, pipe.vae, count)
    scenes = [draw_scene(random.Random(seed)) for seed in range(count)]
    transformer = pipe.transformer
    if transformer.config.in_channels == folder.LATENT_CHANNELS:
        transformer = folder_i2v.widen(transformer)
    transformer.to(options.device).requires_grad_(True)
    transformer.set_attn_processor(DenseAttention())
    encoder = pipe.text_encoder.to(options.device).requires_grad_(False)

    def loss_of(step: int, rng: random.Random) -> tuple[Tensor, dict[str, float]]:
        order = rng.sample(range(count), options.batch)
        captions = draw_captions([scenes[i] for i in order], rng)
        clean, given = (x[order].float().to(options.device) for x in (clips, conditions))
        text = embed_captions(pipe.tokenizer, encoder, captions)
        loss = flow_loss(transformer, clean, text, given)
        return loss, {"loss": loss.item()}

    run("transformer", options, transformer, optimizers(transformer, 1e-3, 1e-3), loss_of)


def write_folder(options: Options) -> None:
    """The averaged weights, with text encoder and VAE of the model they started from, as one diffusers folder."""
    pipe = load_start(options)
    transformer = folder.build_transformer(folder_i2v.IN_CHANNELS)
    saved = torch.load(options.out / "transformer.pt", weights_only=True, map_location="cpu")
    transformer.load_state_dict(saved["average"], strict=False)
    # A loaded VAE's configuration would tell where it lay.
    vae = folder.build_vae(pipe.vae.config.latents_std)
    vae.load_state_dict(pipe.vae.state_dict())
    out = options.out / "toyworld-wan-i2v"
    folder.save(out, transformer, pipe.text_encoder, vae, WanImageToVideoPipeline)


STAGES: dict[str, Callable[[Options], None]] = {
    "transformer": train_transformer,
    "folder": write_folder,
}
