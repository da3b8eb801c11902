"""Text encoders of a few thousand weights, and tokenizers that need no download."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertModel,
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    T5Config,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
)

WIDTH = 16
_SIZES = {
    "hidden_size": WIDTH,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
}
END = "</s>"
_KNOWN = ["a cat runs over a red field"]


def tokenizer(length: int, texts: Sequence[str] = (), extra: Sequence[str] = ()) -> Any:
    """One that has the words of `texts` as tokens, and `extra` ones; it pads to `length`."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel()
    specials = ["<pad>", END, *extra]
    trainer = trainers.BpeTrainer(
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator([*_KNOWN, *texts], trainer)
    ending = [(END, made.token_to_id(END))]
    made.post_processor = processors.TemplateProcessing(single=f"$A {END}", special_tokens=ending)
    named = {"pad_token": "<pad>", "eos_token": END, "unk_token": "<pad>"}
    return PreTrainedTokenizerFast(
        tokenizer_object=made, model_max_length=length, padding_side="right", **named
    )


def t5(length: int = 512, multilingual: bool = False) -> dict[str, Any]:
    """A T5 and its tokenizer."""
    words = tokenizer(length)
    config, kind = (UMT5Config, UMT5EncoderModel) if multilingual else (T5Config, T5EncoderModel)
    sizes = {"d_model": WIDTH, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    encoder: Any = kind(config(vocab_size=len(words), pad_token_id=0, **sizes))  # type: ignore[arg-type]
    return {"text_encoder": encoder.eval(), "tokenizer": words}


def clip(projected: bool = False) -> dict[str, Any]:
    """A CLIP text model and its tokenizer."""
    words = tokenizer(77)
    config = CLIPTextConfig(
        vocab_size=len(words),
        projection_dim=WIDTH,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
        **_SIZES,  # type: ignore[arg-type]
    )
    kind: Any = CLIPTextModelWithProjection if projected else CLIPTextModel
    return {"text_encoder": kind(config).eval(), "tokenizer": words}


def bert() -> dict[str, Any]:
    """A BERT and its tokenizer."""
    words = tokenizer(77)
    encoder = BertModel(BertConfig(vocab_size=len(words), **_SIZES)).eval()  # type: ignore[arg-type]
    return {"text_encoder": encoder, "tokenizer": words}


def qwen(template: str, whole: bool = True) -> dict[str, Any]:
    """A Qwen2.5-VL, `whole` or its text model alone, and a tokenizer that knows the template's words."""
    words = tokenizer(1024, [template])
    words.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
    text = {
        **_SIZES,
        "vocab_size": len(words),
        "num_key_value_heads": 2,
        "rope_parameters": rope,
        "max_position_embeddings": 2048,
    }
    vision = {"depth": 1, "hidden_size": WIDTH, "intermediate_size": 32, "num_heads": 2}
    config = Qwen2_5_VLConfig(text_config=text, vision_config={**vision, "out_hidden_size": WIDTH})
    model = Qwen2_5_VLForConditionalGeneration(config).eval()
    encoder = model if whole else model.model.language_model
    return {"text_encoder": encoder, "tokenizer": words}


def llava(template: str) -> dict[str, Any]:
    """A LLaVA that sees 24 × 24 patches, its image processor, and a tokenizer that knows the words of the template."""
    headers = [f"<|{name}|>" for name in ("start_header_id", "end_header_id", "eot_id")]
    words = tokenizer(512, [template], ["<image>", *headers])
    sizes = {**_SIZES, "image_size": 48, "patch_size": 2}
    vision = CLIPVisionConfig(**sizes)  # type: ignore[arg-type]
    text = LlamaConfig(
        vocab_size=len(words), pad_token_id=0, max_position_embeddings=2048, **_SIZES
    )  # type: ignore[arg-type]
    image = words.convert_tokens_to_ids("<image>")
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=image)
    config.pad_token_id = 0
    processor = CLIPImageProcessor(
        size={"shortest_edge": 48}, crop_size={"height": 48, "width": 48}
    )
    model = LlavaForConditionalGeneration(config).eval()
    return {"text_encoder": model, "tokenizer": words, "image_processor": processor}


def second(encoder: dict[str, Any], place: int = 2) -> dict[str, Any]:
    """The same as the pipeline's second one, or whichever."""
    return {f"{name}_{place}": part for name, part in encoder.items()}
