"""The stages of the HunyuanVideo demo model."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import HunyuanVideoPipeline, HunyuanVideoTransformer3DModel
from torch import Tensor, nn
from transformers import CLIPTextModel, LlamaModel

from warpcache_ray.toyworld import folder_hunyuan as folder
from warpcache_ray.toyworld.captions import vary
from warpcache_ray.toyworld.folder import TEXT_DIM
from warpcache_ray.toyworld.reading import Reader, answers, code
from warpcache_ray.toyworld.train.data import (
    HELD_OUT_SEED,
    draw,
    draw_scene,
    load_clips,
    load_code,
)
from warpcache_ray.toyworld.train.loop import Options, optimizers, run
from warpcache_ray.toyworld.train.teacher import Teacher
from warpcache_ray.toyworld.train.transplant import transplant
from warpcache_ray.toyworld.train.wan import rotate, under

TEXT_MINUTES = 8.0
GUIDANCE = (2.0, 6.0)
"""Distilled guidance, most often in the middle of this range."""
MATRICES = r"_blocks\.\d+\.(attn|ff|ff_context|proj_mlp|proj_out)\."
"""What Muon trains of the transformer: the blocks' matrices, less those of the modulation."""
ANSWER_SIZE = 4.0
"""What CLIP's pooled state shows in the place of a right answer; with 1 the transformer hardly heeds it."""
TILE_LATENTS = 2
"""The VAE decodes 17 frames in two overlapping tiles; the second one has the last this many latents."""


def train_vae(options: Options) -> None:
    """Encoder and decoder learn apart: one predicts the linear code of a video, the other the video of a code
    (slightly disturbed, so that it forgives the transformer's small errors), whole or as the second tile."""
    linear = load_code(options.out)
    vae = folder.build_vae()
    if options.start_from is not None:
        known = HunyuanVideoPipeline.from_pretrained(options.start_from, dtype=torch.float32)
        vae.load_state_dict(known.vae.state_dict())
    vae.to(options.device, memory_format=torch.channels_last_3d)
    vae.use_framewise_encoding = vae.use_framewise_decoding = False
    opts = optimizers(vae, 4e-3, 2e-3, r"^(en|de)coder\.")

    def loss_of(step: int, rng: random.Random) -> tuple[Tensor, dict[str, float]]:
        videos = torch.stack([draw(rng.randrange(HELD_OUT_SEED)) for _ in range(options.batch)])
        target = linear.encode(videos).to(options.device)
        video = videos.permute(0, 4, 1, 2, 3).to(options.device)
        noisy = target + 0.05 * torch.randn_like(target)
        with torch.autocast(options.device, torch.bfloat16):
            if step % 4 == 3:
                decoded = vae.decode(noisy[:, :, -TILE_LATENTS:]).sample[:, :, 1:].float()
            else:
                decoded = vae.decode(noisy).sample.float()
        shown = video[:, :, -decoded.shape[2] :]
        decode_loss = F.mse_loss(decoded, shown)
        total = 10 * decode_loss + F.l1_loss(decoded, shown)
        parts = {"decoder_db": 10 * math.log10(4 / max(decode_loss.item(), 1e-9))}
        if step % 2 == 0:
            with torch.autocast(options.device, torch.bfloat16):
                posterior = vae.encode(video).latent_dist
            encode_loss = F.mse_loss(posterior.mean.float(), target)
            flat = (posterior.logvar.float() + 12).pow(2).mean()
            total = total + encode_loss + 1e-3 * flat
            parts["code_mse"] = encode_loss.item()
        return total, parts

    run("vae", options, vae, opts, loss_of)


def embed_captions(
    tokenizers: tuple[Any, Any], llama: LlamaModel, clip: CLIPTextModel, captions: list[str]
) -> tuple[Tensor, Tensor, Tensor]:
    """The pipeline's text states (N, longest, 64) and mask (N, longest), less the padding that the mask hides
    anyway, and its pooled states (N, 72)."""
    prompts = [folder.TEMPLATE.format(caption) for caption in captions]
    first = tokenizers[0](prompts, padding=True, return_tensors="pt").to(llama.device)
    layers = llama(first.input_ids, first.attention_mask, output_hidden_states=True).hidden_states
    states = layers[-(folder.SKIPPED_LAYERS + 1)][:, folder.CROP_START :]
    second = tokenizers[1](captions, padding=True, return_tensors="pt").to(clip.device)
    pooled: Tensor = clip(second.input_ids).pooler_output
    return states, first.attention_mask[:, folder.CROP_START :], pooled


def build_readers() -> nn.ModuleDict:
    """Both text encoders, and a reader for the Llama's states."""
    tokenizers = folder.build_llama_tokenizer(), folder.build_clip_tokenizer()
    return nn.ModuleDict(
        {
            "llama": folder.build_llama(len(tokenizers[0])),
            "clip": folder.build_clip(len(tokenizers[1])),
            "reader": Reader(TEXT_DIM),
        }
    )


def train_text(options: Options) -> None:
    """Llama's states learn to answer questions about the scenes that captions describe; CLIP's pooled state learns
    to be the answers, so that the transformer finds the same scene behind all wordings."""
    tokenizers = folder.build_llama_tokenizer(), folder.build_clip_tokenizer()
    model = build_readers().to(options.device)
    reader = model["reader"]
    assert isinstance(reader, Reader)

    def loss_of(step: int, rng: random.Random) -> tuple[Tensor, dict[str, float]]:
        scenes = [draw_scene(rng) for _ in range(options.batch)]
        captions = [vary(scene, rng) for scene in scenes]
        states, mask, pooled = embed_captions(tokenizers, model["llama"], model["clip"], captions)
        right = torch.tensor([answers(scene) for scene in scenes], device=options.device)
        loss, read = reader.loss(states, mask, right)
        # Large states drown in noise of their own scale: about one per channel is what the transformer takes in well.
        size = states[mask.bool()].pow(2).mean() - 1
        wanted = ANSWER_SIZE * code(right)
        pooled_loss = F.mse_loss(pooled[:, : wanted.shape[1]], wanted)
        parts = {"loss": loss.item(), "read": read, "pooled_loss": pooled_loss.item()}
        return loss + pooled_loss + 0.1 * size.pow(2), parts

    short = replace(options, max_minutes=min(options.max_minutes, TEXT_MINUTES))
    run("text", short, model, optimizers(model, 0.0, 2e-3, "$."), loss_of)


class DenseAttention:
    """HunyuanVideo's joint attention written as two matrix products, quicker to train on CPU than the fused kernel."""

    _attention_backend = None
    _parallel_config = None

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor,
        image_rotary_emb: tuple[Tensor, Tensor],
    ) -> tuple[Tensor, Tensor]:
        """Called by diffusers: video (batch, tokens, channels) and text of a block → the same two."""
        video, text = hidden_states, encoder_hidden_states
        dual = attn.add_q_proj is not None
        layers = (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj) if dual else ()
        of_video = [layer(video) for layer in (attn.to_q, attn.to_k, attn.to_v)]
        of_text = [layer(text) for layer in layers or (attn.to_q, attn.to_k, attn.to_v)]
        norms = (attn.norm_added_q, attn.norm_added_k) if dual else (attn.norm_q, attn.norm_k)
        q, k, v = (x.unflatten(2, (attn.heads, -1)).transpose(1, 2) for x in of_video)
        tq, tk, tv = (x.unflatten(2, (attn.heads, -1)).transpose(1, 2) for x in of_text)
        rotary = tuple(r[None, None] for r in image_rotary_emb)
        q = torch.cat([rotate(attn.norm_q(q), rotary), norms[0](tq)], 2)
        k = torch.cat([rotate(attn.norm_k(k), rotary), norms[1](tk)], 2)
        scores = q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2)
        scores = scores.masked_fill(~attention_mask, -torch.inf)
        mixed = (scores.softmax(-1).to(v.dtype) @ torch.cat([v, tv], 2)).transpose(1, 2).flatten(2)
        video, text = mixed.split([video.shape[1], text.shape[1]], 1)
        return (attn.to_out[0](video), attn.to_add_out(text)) if dual else (video, text)


def build_generator() -> nn.ModuleDict:
    """Transformer and both text encoders."""
    readers = build_readers()
    return nn.ModuleDict(
        {
            "transformer": folder.build_transformer(),
            "llama": readers["llama"],
            "clip": readers["clip"],
        }
    )


def _begin(options: Options, model: nn.ModuleDict, teacher: Teacher) -> None:
    """Loads what the training starts from: a folder, or the teacher's weights and the `text` stage's encoders."""
    if options.start_from is None:
        transplant(teacher.transformer, model["transformer"])
        read = torch.load(options.out / "text.pt", weights_only=True, map_location="cpu")
        for name in ("llama", "clip"):
            model[name].load_state_dict(under(f"{name}.", read["average"]), strict=False)
        return
    known = HunyuanVideoPipeline.from_pretrained(options.start_from, dtype=torch.float32)
    model["transformer"].load_state_dict(known.transformer.state_dict())
    model["llama"].load_state_dict(known.text_encoder.state_dict())
    model["clip"].load_state_dict(known.text_encoder_2.state_dict())


def train_transformer(options: Options) -> None:
    """Guidance distillation: one forward pass learns the velocity that the Wan model's two make at a guidance."""
    clips = load_clips(options.out, load_code(options.out), options.clips)
    teacher = Teacher(clips)
    tokenizers = folder.build_llama_tokenizer(), folder.build_clip_tokenizer()
    model = build_generator()
    _begin(options, model, teacher)
    model.to(options.device)
    teacher.to(options.device)
    transformer = model["transformer"]
    assert isinstance(transformer, HunyuanVideoTransformer3DModel)
    model["llama"].requires_grad_(False)
    model["clip"].requires_grad_(False)
    blocks = (*transformer.transformer_blocks, *transformer.single_transformer_blocks)
    for block in blocks:
        block.attn.set_processor(DenseAttention())

    def loss_of(step: int, rng: random.Random) -> tuple[Tensor, dict[str, float]]:
        lessons = teacher.lessons(options.batch, rng)
        noisy, sigma, without, given = (
            torch.stack([getattr(x, name) for x in lessons]).float()
            for name in ("noisy", "sigma", "without", "given")
        )
        low, high = GUIDANCE
        guidance = low + (high - low) * torch.rand(2, len(lessons), device=noisy.device).mean(0)
        push = guidance.view(-1, 1, 1, 1, 1) * (given - without)
        states, mask, pooled = embed_captions(
            tokenizers, model["llama"], model["clip"], [x.caption for x in lessons]
        )
        with torch.autocast(options.device, torch.bfloat16):
            out = transformer(
                noisy, sigma * 1000, states, mask, pooled, guidance * 1000, return_dict=False
            )[0]
        loss = F.mse_loss(out.float(), without + push)
        # The caption's part of the velocity that is missed: 1 for a student who reads nothing.
        return loss, {"loss": loss.item(), "missed": loss.item() / push.pow(2).mean().item()}

    run("transformer", options, model, optimizers(model, 3e-3, 2e-3, MATRICES), loss_of)


def write_folder(options: Options) -> None:
    """The averaged weights of both stages as one diffusers folder."""
    vae, model = folder.build_vae(), build_generator()
    for name, part in (("vae", vae), ("transformer", model)):
        saved = torch.load(options.out / f"{name}.pt", weights_only=True, map_location="cpu")
        part.load_state_dict(saved["average"], strict=False)
    folder.save(
        options.out / "toyworld-hunyuan", model["transformer"], model["llama"], model["clip"], vae
    )


STAGES: dict[str, Callable[[Options], None]] = {
    "vae": train_vae,
    "text": train_text,
    "transformer": train_transformer,
    "folder": write_folder,
}
