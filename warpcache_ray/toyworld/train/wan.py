"""The stages of the Wan demo model."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import WanPipeline, WanTransformer3DModel
from torch import Tensor, nn
from transformers import UMT5EncoderModel

from warpcache_ray.toyworld import folder
from warpcache_ray.toyworld.captions import Scene, vary
from warpcache_ray.toyworld.reading import Reader, answers
from warpcache_ray.toyworld.train.data import (
    HELD_OUT_SEED,
    draw,
    draw_scene,
    load_clips,
    load_code,
)
from warpcache_ray.toyworld.train.loop import Options, optimizers, run

TEXT_TOKENS = 512
NO_CAPTION_SHARE = 0.1
NOISE_SHIFT = 8.0
TEXT_MINUTES = 2.0


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
            rotary = tuple(r.transpose(1, 2) for r in rotary_emb)
            q, k = rotate(q, rotary), rotate(k, rotary)
        scores = q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2)
        if encoder_hidden_states is not None:
            padding = math.log(TEXT_TOKENS - context.shape[1] + 1)
            scores = scores + F.pad(scores.new_tensor([padding]), (context.shape[1] - 1, 0))
        out: Tensor = attn.to_out[0]((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
        return out


def rotate(x: Tensor, rotary: tuple[Tensor, ...]) -> Tensor:
    """`x` (batch, heads, tokens, channels), pairs of channels turned by cosine and sine (1, 1, tokens, channels)."""
    cos, sin = (r.to(x.dtype) for r in rotary)
    even, odd = x[..., 0::2], x[..., 1::2]
    return x * cos + torch.stack((-odd, even), -1).flatten(-2) * sin


def embed_captions(tokenizer: Any, encoder: UMT5EncoderModel, captions: list[str]) -> Tensor:
    """(N, longest + 1, 64): the pipeline's embeddings, its zero padding shortened to what `DenseAttention` needs."""
    tokens = tokenizer(captions, padding=True, return_tensors="pt").to(encoder.device)
    states = encoder(tokens.input_ids, tokens.attention_mask).last_hidden_state
    return F.pad(states * tokens.attention_mask[..., None], (0, 0, 0, 1))


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


def draw_times(count: int, device: str) -> Tensor:
    """Times in (0, 1), logit-normal with Wan's shift. Half of them are moved towards noise: what a caption decides
    is decided there."""
    u = torch.sigmoid(torch.randn(count, device=device))
    shift = torch.where(torch.arange(count) % 2 == 0, folder.SHIFT, NOISE_SHIFT).to(u)
    return shift * u / (1 + (shift - 1) * u)


def draw_captions(scenes: list[Scene], rng: random.Random) -> list[str]:
    """A wording of each scene, some left out: what guidance pushes away from."""
    return ["" if rng.random() < NO_CAPTION_SHARE else vary(scene, rng) for scene in scenes]


def flow_loss(
    transformer: WanTransformer3DModel, clean: Tensor, text: Tensor, beside: Tensor | None = None
) -> Tensor:
    """Of the velocity at random times; `beside` the noisy clips stand further channels, if there are any."""
    noise = torch.randn_like(clean)
    sigma = draw_times(len(clean), clean.device.type)
    s = sigma.view(-1, 1, 1, 1, 1)
    noisy = (1 - s) * clean + s * noise
    seen = noisy if beside is None else torch.cat([noisy, beside], 1)
    with torch.autocast(clean.device.type, torch.bfloat16):
        out = transformer(seen, sigma * 1000, text, return_dict=False)[0]
    return F.mse_loss(out.float(), noise - clean)


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
        encoder.load_state_dict(under("encoder.", read["average"]), strict=False)
    else:
        known = WanPipeline.from_pretrained(options.start_from, dtype=torch.float32)
        transformer.load_state_dict(known.transformer.state_dict())
        encoder.load_state_dict(known.text_encoder.state_dict())
    encoder.requires_grad_(False)

    def loss_of(step: int, rng: random.Random) -> tuple[Tensor, dict[str, float]]:
        order = rng.sample(range(len(clips)), options.batch)
        text = embed_captions(tokenizer, encoder, draw_captions([scenes[i] for i in order], rng))
        loss = flow_loss(transformer, clips[order].float().to(options.device), text)
        return loss, {"loss": loss.item()}

    run("transformer", options, model, optimizers(model, 3e-3, 1e-3), loss_of)


def under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names start with `prefix`, without it."""
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
