from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline, HunyuanVideoPipeline, HunyuanVideoTransformer3DModel

from warpcache_ray.toyworld import folder_hunyuan as folder
from warpcache_ray.toyworld.folder import LATENT_CHANNELS
from warpcache_ray.toyworld.train.__main__ import main
from warpcache_ray.toyworld.train.hunyuan import DenseAttention, build_generator, embed_captions
from warpcache_ray.toyworld.train.teacher import Teacher
from warpcache_ray.toyworld.train.transplant import EMBEDDING_GAIN, transplant

CAPTIONS = ["a red circle moving left fast over a blue background", "a green star"]


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    """The Wan demo model and a few clips of noise."""
    torch.manual_seed(0)
    return Teacher(torch.randn(8, LATENT_CHANNELS, 5, 8, 8).half())


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a few seconds, stopped once and resumed, and its folder."""
    out = tmp_path_factory.mktemp("training")
    common = ["--arch", "hunyuan", "--out", str(out), "--threads", "1", "--device", "cpu"]
    common += ["--batch", "2", "--clips", "8"]
    for minutes in ("0.03", "0.06"):
        for stage in ("vae", "text", "transformer"):
            main([*common, "--stage", stage, "--max-minutes", minutes])
    main([*common, "--stage", "folder"])
    return out


@pytest.mark.slow
def test_resumes(trained: Path) -> None:
    """The second call went on from where the first one stopped."""
    for name in ("vae", "text", "transformer"):
        saved = torch.load(trained / f"{name}.pt", weights_only=True)
        assert saved["spent"] == pytest.approx(0.06 * 60)
        assert saved["step"] >= 2


@pytest.mark.slow
def test_folder_is_a_plain_pipeline(trained: Path) -> None:
    """`from_pretrained` loads it in fp32, and it generates without a negative prompt."""
    path = trained / "toyworld-hunyuan"
    size = sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
    assert size < 17 * 2**20
    pipe = DiffusionPipeline.from_pretrained(path, dtype=torch.float32)
    assert isinstance(pipe, HunyuanVideoPipeline)
    assert pipe.vae.config.scaling_factor == 1.0
    assert pipe.transformer.config.guidance_embeds
    saved = torch.load(trained / "vae.pt", weights_only=True)
    weight = pipe.vae.encoder.conv_in.conv.weight
    assert torch.allclose(weight, saved["average"]["encoder.conv_in.conv.weight"], atol=1e-3)
    pipe.set_progress_bar_config(disable=True)
    frames = pipe(CAPTIONS[0], height=64, width=64, num_frames=17, num_inference_steps=2).frames[0]
    assert len(frames) == 17


@pytest.mark.slow
def test_goes_on_from_a_folder(trained: Path, tmp_path: Path) -> None:
    """A new run can start from the weights of a folder: with no time to learn it writes the same ones."""
    known = trained / "toyworld-hunyuan"
    common = ["--arch", "hunyuan", "--out", str(tmp_path), "--start-from", str(known)]
    common += ["--max-minutes", "0", "--clips", "8", "--threads", "1", "--device", "cpu"]
    for stage in ("vae", "transformer", "folder"):
        main([*common, "--stage", stage])
    for part in ("vae", "transformer"):
        file = f"{part}/diffusion_pytorch_model.safetensors"
        assert (tmp_path / "toyworld-hunyuan" / file).read_bytes() == (known / file).read_bytes()


def test_pipeline_crops_to_the_caption() -> None:
    """What the pipeline crops of the Llama's tokens is the template, to the token."""
    tokenizer = folder.build_llama_tokenizer()
    ids = tokenizer(folder.TEMPLATE.format(CAPTIONS[0])).input_ids
    cropped = tokenizer.decode(ids[folder.CROP_START :])
    assert cropped.strip() == f"{CAPTIONS[0]}<|eot_id|>"


def test_training_sees_what_the_pipeline_shows() -> None:
    """The shortened text and the dense attention give the output of the pipeline's 256 padded tokens."""
    torch.manual_seed(0)
    model = build_generator().eval()
    transformer = model["transformer"]
    assert isinstance(transformer, HunyuanVideoTransformer3DModel)
    tokenizers = folder.build_llama_tokenizer(), folder.build_clip_tokenizer()
    pipe = HunyuanVideoPipeline(
        text_encoder=model["llama"],
        tokenizer=tokenizers[0],
        transformer=transformer,
        vae=folder.build_vae(),
        scheduler=None,
        text_encoder_2=model["clip"],
        tokenizer_2=tokenizers[1],
    )
    latent, time = torch.randn(2, LATENT_CHANNELS, 2, 4, 4), torch.tensor([900.0, 300.0])
    guidance = torch.tensor([4000.0, 1000.0])
    with torch.no_grad():
        states, pooled, mask = pipe.encode_prompt(CAPTIONS)
        shown = transformer(latent, time, states, mask, pooled, guidance, return_dict=False)[0]
        for block in (*transformer.transformer_blocks, *transformer.single_transformer_blocks):
            block.attn.set_processor(DenseAttention())
        short, short_mask, short_pooled = embed_captions(
            tokenizers, model["llama"], model["clip"], CAPTIONS
        )
        seen = transformer(
            latent, time, short, short_mask, short_pooled, guidance, return_dict=False
        )[0]
    assert states.shape[1] == 256
    assert short.shape[1] < 32
    torch.testing.assert_close(short_pooled, pooled)
    torch.testing.assert_close(seen, shown, atol=1e-5, rtol=1e-5)


def test_captions_stay_apart() -> None:
    """Both text states tell captions apart, and "" has its own."""
    tokenizers = folder.build_llama_tokenizer(), folder.build_clip_tokenizer()
    torch.manual_seed(0)
    model = build_generator().eval()
    captions = [*CAPTIONS, CAPTIONS[0].replace("left", "right"), "something else entirely", ""]
    with torch.no_grad():
        states, mask, pooled = embed_captions(tokenizers, model["llama"], model["clip"], captions)
    shown = (states * mask[..., None]).sum(1)
    for i in range(len(captions)):
        for other in range(i + 1, len(captions)):
            assert not torch.allclose(shown[i], shown[other], atol=1e-3)
            assert not torch.allclose(pooled[i], pooled[other], atol=1e-3)


def test_lessons_are_new(teacher: Teacher) -> None:
    """Each call draws other noise, and a caption makes a difference to what the teacher predicts."""
    (first,), (second,) = (teacher.lessons(1, random.Random(0)) for _ in range(2))
    assert first.caption == second.caption
    assert not torch.equal(first.noisy, second.noisy)
    assert first.noisy.shape == first.given.shape == (LATENT_CHANNELS, 5, 8, 8)
    assert not torch.equal(first.given, first.without)


def test_transplant_starts_from_the_teacher(teacher: Teacher) -> None:
    """The student embeds latents as the teacher does, and times likewise, only larger."""
    torch.manual_seed(0)
    student = folder.build_transformer()
    transplant(teacher.transformer, student)
    times = torch.tensor([0.0, 250.0, 999.0])
    ours, theirs = student.time_text_embed, teacher.transformer.condition_embedder
    with torch.no_grad():
        torch.testing.assert_close(
            ours.timestep_embedder(ours.time_proj(times)),
            theirs.time_embedder(theirs.timesteps_proj(times)) * EMBEDDING_GAIN,
            atol=1e-3,
            rtol=1e-3,
        )
    assert torch.equal(student.x_embedder.proj.weight, teacher.transformer.patch_embedding.weight)
    assert torch.equal(student.proj_out.weight, teacher.transformer.proj_out.weight)
