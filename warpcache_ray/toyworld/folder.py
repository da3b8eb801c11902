"""Builds the toy world's `WanPipeline` with untrained weights, and writes it as a diffusers folder."""

from __future__ import annotations

import random
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    WanImageToVideoPipeline,
    WanPipeline,
    WanTransformer3DModel,
)
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from warpcache_ray.toyworld.captions import canonical, sample_scene, vary

LATENT_CHANNELS = 32
TEXT_DIM = 64
SHIFT = 3.0


def corpus() -> list[str]:
    """Captions to learn tokens from: each word of the grammar, many times."""
    rng = random.Random(0)
    scenes = [sample_scene(rng, rng.choice((1, 2))) for _ in range(2000)]
    return [f"{canonical(s)} {vary(s, rng)}" for s in scenes]


def learn_tokens(
    texts: list[str], specials: list[str], size: int, normalizer: normalizers.Normalizer
) -> Tokenizer:
    """A byte-level BPE of at most `size` tokens that knows each word of the texts as one; any other text is spelt."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Of the caption grammar, in lower case."""
    specials = ["<pad>", "</s>", "<unk>"]
    tokenizer = learn_tokens(corpus(), specials, 600, normalizers.Lowercase())
    end = tokenizer.token_to_id("</s>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", end)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=512,
    )


def build_text_encoder(vocabulary: int) -> UMT5EncoderModel:
    """A two-layer UMT5 encoder of width 64; it learns together with the transformer."""
    config = UMT5Config(
        vocab_size=vocabulary,
        d_model=TEXT_DIM,
        d_kv=16,
        d_ff=128,
        num_layers=2,
        num_heads=4,
        relative_attention_num_buckets=16,
        relative_attention_max_distance=64,
        dropout_rate=0.0,
        pad_token_id=0,
        eos_token_id=1,
    )
    return UMT5EncoderModel(config)


def build_vae(latents_std: list[float]) -> AutoencoderKLWan:
    """8×8 pixels and 4 frames to one latent, as in Wan; half of the spatial factor by pixel unshuffling."""
    return AutoencoderKLWan(
        base_dim=16,
        decoder_base_dim=24,
        z_dim=LATENT_CHANNELS,
        dim_mult=[1, 2, 2],
        num_res_blocks=1,
        temperal_downsample=[True, True],
        latents_mean=[0.0] * LATENT_CHANNELS,
        latents_std=latents_std,
        is_residual=True,
        in_channels=12,
        out_channels=12,
        patch_size=2,
        scale_factor_temporal=4,
        scale_factor_spatial=8,
    )


def build_transformer(in_channels: int = LATENT_CHANNELS) -> WanTransformer3DModel:
    """Ten blocks of width 192 over 5×8×8 = 320 tokens; 6.3 M parameters."""
    return WanTransformer3DModel(
        patch_size=(1, 1, 1),
        num_attention_heads=4,
        attention_head_dim=48,
        in_channels=in_channels,
        out_channels=LATENT_CHANNELS,
        text_dim=TEXT_DIM,
        freq_dim=128,
        ffn_dim=768,
        num_layers=10,
        cross_attn_norm=True,
        rope_max_seq_len=64,
    )


def save(
    folder: Path,
    transformer: WanTransformer3DModel,
    text_encoder: UMT5EncoderModel,
    vae: AutoencoderKLWan,
    kind: type[WanPipeline | WanImageToVideoPipeline] = WanPipeline,
) -> None:
    """Writes the pipeline folder with fp16 weights; `from_pretrained(folder, dtype=torch.float32)` reads it."""
    pipe = kind(
        tokenizer=build_tokenizer(),
        text_encoder=text_encoder,
        vae=vae,
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=SHIFT),
    )
    pipe.to(torch.float16)
    pipe.save_pretrained(folder)
