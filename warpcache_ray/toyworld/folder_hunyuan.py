"""Builds the toy world's `HunyuanVideoPipeline` with untrained weights, and writes it as a diffusers folder."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKLHunyuanVideo,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
)
from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import DEFAULT_PROMPT_TEMPLATE
from tokenizers import (
    Regex,
    Tokenizer,
    normalizers,
    processors,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    LlamaConfig,
    LlamaModel,
    PreTrainedTokenizerFast,
)

from warpcache_ray.toyworld.folder import (
    LATENT_CHANNELS,
    SHIFT,
    TEXT_DIM,
    corpus,
    learn_tokens,
)

TEMPLATE: str = DEFAULT_PROMPT_TEMPLATE["template"]
CROP_START: int = DEFAULT_PROMPT_TEMPLATE["crop_start"]
"""The pipeline drops the states of this many tokens, those of the template before the caption."""
POOLED_DIM = 72
SKIPPED_LAYERS = 2
"""The pipeline takes the states of the Llama that come before its last this many layers."""

_BEGIN, _END, _PAD = "<|begin_of_text|>", "<|eot_id|>", "<|pad|>"
_HEADER = ("<|start_header_id|>", "<|end_header_id|>")
_CLIP_START, _CLIP_END = "<|startoftext|>", "<|endoftext|>"


def _bpe(texts: list[str], specials: list[str]) -> Tokenizer:
    """White space counts as one blank."""
    blanks = normalizers.Replace(Regex(r"\s+"), " ")
    normalizer = normalizers.Sequence([blanks, normalizers.Lowercase()])
    return learn_tokens(texts, specials, 1000, normalizer)


def build_llama_tokenizer() -> PreTrainedTokenizerFast:
    """As many tokens before the caption as the pipeline crops: the template's words, after a run of begin tokens."""
    words = re.sub(r"<\|\w+\|>", " ", TEMPLATE)
    tokenizer = _bpe([*corpus(), words, words], [_PAD, _BEGIN, _END, *_HEADER])
    before = len(
        tokenizer.encode(TEMPLATE.partition("{}")[0].rstrip(), add_special_tokens=False).ids
    )
    begin = tokenizer.token_to_id(_BEGIN)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{_BEGIN} " * (CROP_START - before) + "$A", special_tokens=[(_BEGIN, begin)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=_BEGIN,
        eos_token=_END,
        pad_token=_PAD,
        padding_side="right",
        model_max_length=512,
    )


def build_clip_tokenizer() -> PreTrainedTokenizerFast:
    """Caption words between CLIP's start and end tokens; the end token also pads."""
    tokenizer = _bpe(corpus(), [_CLIP_START, _CLIP_END])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{_CLIP_START} $A {_CLIP_END}",
        special_tokens=[(t, tokenizer.token_to_id(t)) for t in (_CLIP_START, _CLIP_END)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=_CLIP_START,
        eos_token=_CLIP_END,
        pad_token=_CLIP_END,
        padding_side="right",
        model_max_length=77,
    )


def build_llama(vocabulary: int) -> LlamaModel:
    """Four layers of width 64, of which the pipeline's hidden states pass through two."""
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=TEXT_DIM,
        intermediate_size=128,
        num_attention_heads=4,
        num_hidden_layers=2 + SKIPPED_LAYERS,
        max_position_embeddings=512,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.1,
    )
    return LlamaModel(config)


def build_clip(vocabulary: int) -> CLIPTextModel:
    """Two layers of width 72; the state of the end token is the pooled one."""
    config = CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=POOLED_DIM,
        intermediate_size=144,
        projection_dim=POOLED_DIM,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=77,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
        initializer_factor=5.0,
    )
    return CLIPTextModel(config)


def build_vae() -> AutoencoderKLHunyuanVideo:
    """8×8 pixels and 4 frames to one latent; few channels where the pixels are many. 1.2 M parameters."""
    return AutoencoderKLHunyuanVideo(
        latent_channels=LATENT_CHANNELS,
        block_out_channels=(8, 16, 32, 48),
        layers_per_block=1,
        norm_num_groups=1,
        mid_block_add_attention=False,
        scaling_factor=1.0,
    )


def build_transformer() -> HunyuanVideoTransformer3DModel:
    """Two dual-stream and five single-stream blocks of width 192 over 5×8×8 = 320 video tokens and the text's;
    6.4 M parameters. Rotary frequencies as in the Wan model, its teacher."""
    return HunyuanVideoTransformer3DModel(
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_attention_heads=4,
        attention_head_dim=48,
        num_layers=2,
        num_single_layers=5,
        num_refiner_layers=1,
        patch_size=1,
        patch_size_t=1,
        guidance_embeds=True,
        text_embed_dim=TEXT_DIM,
        pooled_projection_dim=POOLED_DIM,
        rope_theta=10_000.0,
        rope_axes_dim=(16, 16, 16),
    )


def save(
    folder: Path,
    transformer: HunyuanVideoTransformer3DModel,
    llama: LlamaModel,
    clip: CLIPTextModel,
    vae: AutoencoderKLHunyuanVideo,
) -> None:
    """Writes the pipeline folder with fp16 weights; `from_pretrained(folder, dtype=torch.float32)` reads it."""
    pipe = HunyuanVideoPipeline(
        text_encoder=llama,
        tokenizer=build_llama_tokenizer(),
        transformer=transformer,
        vae=vae,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=SHIFT),
        text_encoder_2=clip,
        tokenizer_2=build_clip_tokenizer(),
    )
    pipe.to(torch.float16)
    pipe.save_pretrained(folder)
