"""Tiny real pipelines with random weights, as folders that `from_pretrained` loads; and a store."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import cosmos_guardrail
import pytest
import torch
from diffusers import (
    AutoencoderKLHunyuanVideo,
    AutoencoderKLWan,
    CosmosTransformer3DModel,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    LlamaConfig,
    LlamaModel,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    UMT5Config,
    UMT5EncoderModel,
)

from warpcache_ray.policy_document import Certificate, PolicyDocument, PolicyKey, Target
from warpcache_ray.store.server import EmbeddedServer

torch.set_num_threads(1)
cosmos_guardrail.stand_in()

CALL = {"height": 32, "width": 32, "num_frames": 9, "num_inference_steps": 8}
"""A generation that every tiny model makes in a fraction of a second."""


def _tokenizer(template: str, specials: dict[str, str], length: int) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    trainer = trainers.BpeTrainer(
        special_tokens=list(dict.fromkeys(specials.values())),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["a cat runs over a red field"], trainer)
    named = [(token, tokenizer.token_to_id(token)) for token in specials.values()]
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=named)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=length, padding_side="right", **specials
    )


def _wan_vae() -> AutoencoderKLWan:
    return AutoencoderKLWan(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    ).eval()


def build_wan(expert_2: bool = False) -> WanPipeline:
    """Four blocks of width 32 under UniPC; with `expert_2` a second transformer, as Wan 2.2 has."""
    torch.manual_seed(0)
    specials = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokenizer = _tokenizer("$A </s>", specials, 512)
    text = UMT5Config(
        vocab_size=len(tokenizer),
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_layers=1,
        num_heads=2,
        pad_token_id=0,
    )

    def transformer() -> WanTransformer3DModel:
        return WanTransformer3DModel(
            patch_size=(1, 2, 2),
            num_attention_heads=2,
            attention_head_dim=16,
            in_channels=4,
            out_channels=4,
            text_dim=16,
            freq_dim=32,
            ffn_dim=64,
            num_layers=4,
            rope_max_seq_len=32,
        )

    return WanPipeline(
        tokenizer=tokenizer,
        text_encoder=UMT5EncoderModel(text).eval(),
        vae=_wan_vae(),
        transformer=transformer().eval(),
        transformer_2=transformer().eval() if expert_2 else None,
        boundary_ratio=0.7 if expert_2 else None,
        scheduler=UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
    )


def build_hunyuan() -> HunyuanVideoPipeline:
    """Two dual-stream and two single-stream blocks of width 32."""
    torch.manual_seed(0)
    begin, end, pad = "<|begin_of_text|>", "<|eot_id|>", "<|pad|>"
    llama = _tokenizer(f"{begin} $A", {"bos_token": begin, "eos_token": end, "pad_token": pad}, 512)
    start, stop = "<|startoftext|>", "<|endoftext|>"
    clip = _tokenizer(
        f"{start} $A {stop}", {"bos_token": start, "eos_token": stop, "pad_token": stop}, 77
    )
    llama_config = LlamaConfig(
        vocab_size=len(llama),
        hidden_size=16,
        intermediate_size=32,
        num_attention_heads=2,
        num_hidden_layers=3,
        pad_token_id=llama.pad_token_id,
    )
    clip_config = CLIPTextConfig(
        vocab_size=len(clip),
        hidden_size=16,
        intermediate_size=32,
        num_attention_heads=2,
        num_hidden_layers=1,
        projection_dim=16,
        eos_token_id=clip.eos_token_id,
        pad_token_id=clip.pad_token_id,
    )
    return HunyuanVideoPipeline(
        text_encoder=LlamaModel(llama_config).eval(),
        tokenizer=llama,
        text_encoder_2=CLIPTextModel(clip_config).eval(),
        tokenizer_2=clip,
        transformer=HunyuanVideoTransformer3DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=16,
            num_layers=2,
            num_single_layers=2,
            num_refiner_layers=1,
            patch_size=2,
            patch_size_t=1,
            guidance_embeds=True,
            text_embed_dim=16,
            pooled_projection_dim=16,
            rope_axes_dim=(4, 6, 6),
            mlp_ratio=2.0,
        ).eval(),
        vae=AutoencoderKLHunyuanVideo(
            latent_channels=4,
            block_out_channels=(4, 4, 4, 4),
            layers_per_block=1,
            norm_num_groups=2,
            mid_block_add_attention=False,
        ).eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
    )


def build_cosmos() -> Any:
    """Cosmos-Predict2.5 with four blocks of width 32 under UniPC, and positional embeddings as Cosmos-Predict1 has."""
    from diffusers import Cosmos2_5_PredictBasePipeline

    torch.manual_seed(0)
    tokenizer = _tokenizer("$A", {"pad_token": "<pad>", "eos_token": "<|im_end|>"}, 512)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'][0]['text'] }}{% endfor %}"
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e4,
            "mrope_section": [2, 1, 1],
        },
    }
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 32, "num_heads": 2}
    transformer = CosmosTransformer3DModel(
        in_channels=5,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=4,
        mlp_ratio=2,
        text_embed_dim=16,
        adaln_lora_dim=4,
        max_size=(8, 32, 32),
        # With it, torchvision is needed.
        concat_padding_mask=False,
        use_crossattn_projection=True,
        crossattn_proj_in_channels=16,
        encoder_hidden_states_channels=16,
    )
    for embedding in transformer.learnable_pos_embed.parameters():
        torch.nn.init.normal_(embedding)
    return Cosmos2_5_PredictBasePipeline(
        text_encoder=Qwen2_5_VLForConditionalGeneration(
            Qwen2_5_VLConfig(text_config=text, vision_config={**vision, "out_hidden_size": 16})
        ).eval(),
        tokenizer=tokenizer,
        transformer=transformer.eval(),
        vae=_wan_vae(),
        scheduler=UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0
        ),
        safety_checker=cosmos_guardrail.CosmosSafetyChecker(),
    )


BUILDERS: dict[str, Callable[[], Any]] = {
    "wan": build_wan,
    "hunyuan": build_hunyuan,
    "cosmos": build_cosmos,
}


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folder of each tiny model."""
    root = tmp_path_factory.mktemp("models")
    for name, build in BUILDERS.items():
        build().save_pretrained(root / name)
    return {name: root / name for name in BUILDERS}


@pytest.fixture(scope="session")
def loras(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Two adapters of the tiny Wan's attention, as files."""
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    root, files = tmp_path_factory.mktemp("loras"), {}
    for number, name in enumerate(("ink", "clay")):
        torch.manual_seed(number)
        transformer = WanTransformer3DModel.from_pretrained(folders["wan"], subfolder="transformer")
        config = LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False)
        transformer.add_adapter(config)
        state = get_peft_model_state_dict(transformer)
        files[name] = str(root / f"{name}.safetensors")
        save_file({f"transformer.{key}": value for key, value in state.items()}, files[name])
    return files


@pytest.fixture(params=BUILDERS)
def model(request: pytest.FixtureRequest) -> str:
    """Each tiny model in turn."""
    name: str = request.param
    return name


@pytest.fixture
def pipe(model: str, folders: dict[str, Path]) -> Any:
    """A fresh pipeline of the model."""
    loaded = DiffusionPipeline.from_pretrained(folders[model])
    loaded.set_progress_bar_config(disable=True)
    return loaded


@pytest.fixture
def two_experts() -> WanPipeline:
    """A Wan 2.2 pipeline."""
    pipe = build_wan(expert_2=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def latents() -> Callable[..., torch.Tensor]:
    """Runs a pipeline as any user would, up to the final latents."""

    def run(pipe: Any, seed: int = 0, prompt: str = "a cat runs", **changes: Any) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        arguments = {**CALL, "max_sequence_length": 16, "output_type": "latent", **changes}
        final: torch.Tensor = pipe(prompt=prompt, generator=generator, **arguments).frames
        return final

    return run


@pytest.fixture(scope="session")
def store_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    """The embedded store, for coordinators that run within tests: each under a name of its own."""
    server = EmbeddedServer(tmp_path_factory.mktemp("store"))
    server.start()
    yield server
    server.stop()


DECIBELS = Target("psnr", 35.0)
FOURTEEN = MappingProxyType({"name": "auto", "max_calls": 14})


@pytest.fixture
def make_document() -> Callable[..., PolicyDocument]:
    """`make_document(target, policy, steps=40, ...)`: a certified document; its key is changed as given."""

    def make(
        target: Target = DECIBELS,
        policy: Mapping[str, Any] = FOURTEEN,
        **changes: Any,
    ) -> PolicyDocument:
        sampled = {"height": 64, "width": 64, "num_frames": 17, "steps": 50, "guidance_scale": 4.0}
        named = {"model": "tiny", "scheduler": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
        proof = Certificate(
            certified=True,
            requests=124,
            misses=1,
            allowed_misses=2,
            share=0.95,
            delta=0.05,
            share_kept=0.9622,
            policies_tested=4,
            prompts_sha256="0",
        )
        return PolicyDocument(
            key=PolicyKey(**{**sampled, **named, **changes}),  # type: ignore[arg-type]
            policy=dict(policy),
            target=target,
            expected={"calls": 14},
            certificate=proof,
            provenance={"generations": 11.9},
        )

    return make
