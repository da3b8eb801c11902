"""Trains the toy world's models: `python -m warpcache_ray.toyworld.train --stage vae|text|transformer|folder`.

VAE and transformer learn against the same linear code, so they can run at the same time, one core each; the text
encoder comes before the transformer and takes two minutes. Each stage is resumable: it continues from its last
checkpoint, and its learning rate falls to zero at `--max-minutes`.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import WanPipeline, WanTransformer3DModel
from torch import Tensor, nn
from tqdm import tqdm
from transformers import UMT5EncoderModel

from warpcache_ray.toyworld import codec, folder
from warpcache_ray.toyworld.captions import Scene, sample_scene, vary
from warpcache_ray.toyworld.reading import Reader, answers
from warpcache_ray.toyworld.scene import render, sample_layout

HELD_OUT_SEED = 10_000_000
"""Training scenes have seeds below this; evaluation uses seeds above it."""
TEXT_TOKENS = 512
NO_CAPTION_SHARE = 0.1
NOISE_SHIFT = 8.0
EMA_DECAY = 0.999
CHECKPOINT_S = 120.0
TEXT_MINUTES = 2.0


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line says."""

    out: Path
    max_minutes: float
    device: str
    batch: int
    clips: int
    seed: int
    start_from: Path | None = None


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


class DenseAttention:
    """Wan's attention written as two matrix products: on CPU in bf16 2.5 times faster to train than the fused
    kernel. For cross-attention the last text token stands for all the zero padding that the pipeline adds."""

    _attention_backend = None
    _parallel_config = None

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Called by diffusers: (batch, tokens, channels) of queries → the same shape."""
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = (
            x.unflatten(2, (attn.heads, -1)).transpose(1, 2)
            for x in (
                attn.norm_q(attn.to_q(hidden_states)),
                attn.norm_k(attn.to_k(context)),
                attn.to_v(context),
            )
        )
        if rotary_emb is not None:
            q, k = _rotate(q, rotary_emb), _rotate(k, rotary_emb)
        scores = q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2)
        if encoder_hidden_states is not None:
            padding = math.log(TEXT_TOKENS - context.shape[1] + 1)
            scores = scores + F.pad(scores.new_tensor([padding]), (context.shape[1] - 1, 0))
        out: Tensor = attn.to_out[0]((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
        return out


def _rotate(x: Tensor, rotary_emb: tuple[Tensor, Tensor]) -> Tensor:
    cos, sin = (r.transpose(1, 2).to(x.dtype) for r in rotary_emb)
    even, odd = x[..., 0::2], x[..., 1::2]
    return x * cos + torch.stack((-odd, even), -1).flatten(-2) * sin


def embed_captions(tokenizer: Any, encoder: UMT5EncoderModel, captions: list[str]) -> Tensor:
    """(N, longest + 1, 64): the pipeline's embeddings, its zero padding shortened to what `DenseAttention` needs."""
    tokens = tokenizer(captions, padding=True, return_tensors="pt").to(encoder.device)
    states = encoder(tokens.input_ids, tokens.attention_mask).last_hidden_state
    return F.pad(states * tokens.attention_mask[..., None], (0, 0, 0, 1))


class Average(nn.Module):
    """Exponential moving average of a model's parameters (bias-corrected start)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.shadow = {k: p.detach().clone() for k, p in model.named_parameters()}

    def update(self, model: nn.Module, step: int) -> None:
        """Moves towards the model's parameters after optimiser step `step`."""
        decay = min(EMA_DECAY, (1 + step) / (10 + step))
        with torch.no_grad():
            for k, p in model.named_parameters():
                self.shadow[k].lerp_(p, 1 - decay)


def optimizers(model: nn.Module, muon_lr: float, adam_lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the transformer blocks, AdamW for all else."""
    learning = {k: p for k, p in model.named_parameters() if p.requires_grad}
    matrices = [p for k, p in learning.items() if p.ndim == 2 and ".blocks." in k]
    chosen = {id(p) for p in matrices}
    rest = [p for p in learning.values() if id(p) not in chosen]
    found: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(rest, adam_lr, (0.9, 0.98), weight_decay=0.0)
    ]
    if matrices:
        found.append(
            torch.optim.Muon(matrices, muon_lr, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
        )
    for optimizer in found:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return found


def run(
    name: str,
    options: Options,
    model: nn.Module,
    opts: list[torch.optim.Optimizer],
    loss_of: Callable[[int, random.Random], tuple[Tensor, dict[str, float]]],
) -> Average:
    """The training loop of one stage: warm-up, constant rate, linear decay over the last third of the time."""
    path = options.out / f"{name}.pt"
    average, start, spent = Average(model), 0, 0.0
    if path.exists():
        saved = torch.load(path, weights_only=True, map_location=options.device)
        model.load_state_dict(saved["model"])
        average.shadow, start, spent = saved["average"], saved["step"], saved["spent"]
        for optimizer, state in zip(opts, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
    began = last = time.monotonic()
    shown: dict[str, float] = {}
    bar = tqdm(
        total=round(options.max_minutes, 1), initial=round(spent / 60, 1), desc=name, unit="min"
    )
    step = start
    while (minutes := (spent + time.monotonic() - began) / 60) < options.max_minutes:
        _set_rate(opts, step, minutes / options.max_minutes)
        loss, parts = loss_of(step, random.Random(options.seed * 1_000_003 + step))
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in opts:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        step += 1
        average.update(model, step)
        shown = {k: shown.get(k, v) * 0.98 + v * 0.02 for k, v in parts.items()}
        bar.set_postfix({"step": step} | {k: f"{v:.4f}" for k, v in shown.items()})
        bar.update(round(minutes - bar.n, 2))
        if time.monotonic() - last > CHECKPOINT_S:
            last = time.monotonic()
            _checkpoint(path, model, average, opts, step, minutes * 60)
    _checkpoint(path, model, average, opts, step, options.max_minutes * 60)
    bar.close()
    return average


def _set_rate(opts: list[torch.optim.Optimizer], step: int, progress: float) -> None:
    factor = min(1.0, (step + 1) / 100, max(0.0, (1 - progress) / 0.35))
    for optimizer in opts:
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * factor


def _checkpoint(
    path: Path,
    model: nn.Module,
    average: Average,
    opts: list[torch.optim.Optimizer],
    step: int,
    spent: float,
) -> None:
    state = {
        "model": model.state_dict(),
        "average": average.shadow,
        "optimizers": [o.state_dict() for o in opts],
        "step": step,
        "spent": spent,
    }
    torch.save(state, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").rename(path)


def train_vae(options: Options) -> None:
    """Encoder and decoder learn apart: one predicts the linear code of a video, the other the video of a code
    (slightly disturbed, so that it forgives the transformer's small errors)."""
    code = load_code(options.out)
    vae = folder.build_vae(code.std.tolist())
    if options.start_from is not None:
        known = WanPipeline.from_pretrained(options.start_from, dtype=torch.float32)
        vae.load_state_dict(known.vae.state_dict())
    vae.to(options.device)
    opts = optimizers(vae, 0.0, 2e-3)
    std = code.std.view(1, -1, 1, 1, 1).to(options.device)

    def loss_of(step: int, rng: random.Random) -> tuple[Tensor, dict[str, float]]:
        videos = torch.stack([draw(rng.randrange(HELD_OUT_SEED)) for _ in range(options.batch)])
        target = code.encode(videos).to(options.device) * std
        video = videos.permute(0, 4, 1, 2, 3).to(options.device)
        with torch.autocast(options.device, torch.bfloat16):
            posterior = vae.encode(video).latent_dist
            noisy = target + 0.05 * torch.randn_like(target) * std
            decoded = vae.decode(noisy).sample
        encode_loss = F.mse_loss(posterior.mean.float(), target)
        decode_loss = F.mse_loss(decoded.float(), video)
        flat = (posterior.logvar.float() + 12).pow(2).mean()
        total = encode_loss + 10 * decode_loss + F.l1_loss(decoded.float(), video) + 1e-3 * flat
        psnr = 10 * math.log10(4 / max(decode_loss.item(), 1e-9))
        return total, {"code_mse": encode_loss.item(), "decoder_db": psnr}

    run("vae", options, vae, opts, loss_of)


def train_text(options: Options) -> None:
    """The text encoder learns to answer questions about the scenes that captions describe."""
    tokenizer = folder.build_tokenizer()
    encoder, reader = folder.build_text_encoder(len(tokenizer)), Reader(folder.TEXT_DIM)
    model = nn.ModuleDict({"encoder": encoder, "reader": reader}).to(options.device)

    def loss_of(step: int, rng: random.Random) -> tuple[Tensor, dict[str, float]]:
        scenes = [draw_scene(rng) for _ in range(options.batch)]
        captions = [vary(scene, rng) for scene in scenes]
        tokens = tokenizer(captions, padding=True, return_tensors="pt").to(options.device)
        states = encoder(tokens.input_ids, tokens.attention_mask).last_hidden_state
        right = torch.tensor([answers(scene) for scene in scenes], device=options.device)
        loss, read = reader.loss(states, tokens.attention_mask, right)
        return loss, {"loss": loss.item(), "read": read}

    short = replace(options, max_minutes=min(options.max_minutes, TEXT_MINUTES))
    run("text", short, model, optimizers(model, 0.0, 2e-3), loss_of)


def build_generator() -> nn.ModuleDict:
    """Transformer and text encoder; the output layer starts at zero."""
    transformer = folder.build_transformer()
    nn.init.zeros_(transformer.proj_out.weight)
    encoder = folder.build_text_encoder(len(folder.build_tokenizer()))
    return nn.ModuleDict({"transformer": transformer, "text_encoder": encoder})


def train_transformer(options: Options) -> None:
    """Flow matching on the coded clips, times logit-normal with Wan's shift, one caption in ten left out."""
    clips = load_clips(options.out, load_code(options.out), options.clips)
    scenes = [draw_scene(random.Random(seed)) for seed in range(len(clips))]
    tokenizer = folder.build_tokenizer()
    model = build_generator().to(options.device)
    transformer, encoder = model["transformer"], model["text_encoder"]
    assert isinstance(transformer, WanTransformer3DModel)
    assert isinstance(encoder, UMT5EncoderModel)
    transformer.set_attn_processor(DenseAttention())
    if options.start_from is None:
        read = torch.load(options.out / "text.pt", weights_only=True, map_location=options.device)
        encoder.load_state_dict(_under("encoder.", read["average"]), strict=False)
    else:
        known = WanPipeline.from_pretrained(options.start_from, dtype=torch.float32)
        transformer.load_state_dict(known.transformer.state_dict())
        encoder.load_state_dict(known.text_encoder.state_dict())
    encoder.requires_grad_(False)

    def loss_of(step: int, rng: random.Random) -> tuple[Tensor, dict[str, float]]:
        order = rng.sample(range(len(clips)), options.batch)
        captions = ["" if rng.random() < NO_CAPTION_SHARE else vary(scenes[i], rng) for i in order]
        clean = clips[order].float().to(options.device)
        noise = torch.randn_like(clean)
        u = torch.sigmoid(torch.randn(options.batch, device=options.device))
        # Half of the times are moved towards noise: what a caption decides is decided there.
        shift = torch.where(torch.arange(options.batch) % 2 == 0, folder.SHIFT, NOISE_SHIFT).to(u)
        sigma = shift * u / (1 + (shift - 1) * u)
        s = sigma.view(-1, 1, 1, 1, 1)
        text = embed_captions(tokenizer, encoder, captions)
        with torch.autocast(options.device, torch.bfloat16):
            out = transformer((1 - s) * clean + s * noise, sigma * 1000, text, return_dict=False)[0]
        loss = F.mse_loss(out.float(), noise - clean)
        return loss, {"loss": loss.item()}

    run("transformer", options, model, optimizers(model, 3e-3, 1e-3), loss_of)


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def write_folder(options: Options) -> None:
    """The averaged weights of both stages as one diffusers folder."""
    code = load_code(options.out)
    vae, model = folder.build_vae(code.std.tolist()), build_generator()
    for name, part in (("vae", vae), ("transformer", model)):
        saved = torch.load(options.out / f"{name}.pt", weights_only=True, map_location="cpu")
        part.load_state_dict(saved["average"], strict=False)
    folder.save(options.out / "toyworld-wan", model["transformer"], model["text_encoder"], vae)


STAGES: dict[str, Callable[[Options], None]] = {
    "vae": train_vae,
    "text": train_text,
    "transformer": train_transformer,
    "folder": write_folder,
}
BATCH = {"vae": 2, "text": 64, "transformer": 16}


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stage", choices=(*STAGES, "all"), default="all")
    parser.add_argument("--out", type=Path, default=Path("toyworld-training"))
    parser.add_argument("--max-minutes", type=float, default=60.0, help="per stage")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--batch", type=int, help=f"default {BATCH}")
    parser.add_argument("--clips", type=int, default=24_000, help="videos to learn from")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start-from", type=Path, help="model folder whose weights to go on from")
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    torch.manual_seed(given.seed)
    given.out.mkdir(parents=True, exist_ok=True)
    for name in STAGES if given.stage == "all" else (given.stage,):
        batch = given.batch or BATCH.get(name, 1)
        options = Options(
            given.out,
            given.max_minutes,
            given.device,
            batch,
            given.clips,
            given.seed,
            given.start_from,
        )
        STAGES[name](options)


if __name__ == "__main__":
    main()
