from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline, WanPipeline, WanTransformer3DModel

from warpcache_ray.toyworld import folder
from warpcache_ray.toyworld.train.__main__ import main
from warpcache_ray.toyworld.train.wan import DenseAttention, build_generator, embed_captions

CAPTIONS = ["a red circle moving left fast over a blue background", ""]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a few seconds, stopped once and resumed, and its folder."""
    out = tmp_path_factory.mktemp("training")
    common = [
        "--out",
        str(out),
        "--threads",
        "1",
        "--batch",
        "2",
        "--clips",
        "8",
        "--device",
        "cpu",
    ]
    for minutes in ("0.03", "0.06"):
        main([*common, "--stage", "vae", "--max-minutes", minutes])
        main([*common, "--stage", "text", "--max-minutes", minutes])
        main([*common, "--stage", "transformer", "--max-minutes", minutes])
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
    """`from_pretrained` loads it in fp32, with our own latent statistics, and it generates."""
    path = trained / "toyworld-wan"
    size = sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
    assert size < 15 * 2**20
    pipe = DiffusionPipeline.from_pretrained(path, dtype=torch.float32)
    assert isinstance(pipe, WanPipeline)
    assert pipe.vae.config.latents_mean == [0.0] * folder.LATENT_CHANNELS
    saved = torch.load(trained / "vae.pt", weights_only=True)
    weight = pipe.vae.encoder.conv_in.weight
    assert torch.allclose(weight, saved["average"]["encoder.conv_in.weight"], atol=1e-3)
    pipe.set_progress_bar_config(disable=True)
    frames = pipe(CAPTIONS[0], height=64, width=64, num_frames=17, num_inference_steps=2).frames[0]
    assert frames.shape == (17, 64, 64, 3)


@pytest.mark.slow
def test_goes_on_from_a_folder(trained: Path, tmp_path: Path) -> None:
    """A new run can start from the weights of a folder: with no time to learn it writes the same ones."""
    known = trained / "toyworld-wan"
    for stage in ("vae", "transformer", "folder"):
        main(
            [
                "--out",
                str(tmp_path),
                "--start-from",
                str(known),
                "--stage",
                stage,
                "--max-minutes",
                "0",
                "--clips",
                "8",
                "--threads",
                "1",
                "--device",
                "cpu",
            ]
        )
    for part in ("vae", "transformer"):
        file = f"{part}/diffusion_pytorch_model.safetensors"
        assert (tmp_path / "toyworld-wan" / file).read_bytes() == (known / file).read_bytes()


def test_training_sees_what_the_pipeline_shows() -> None:
    """The shortened text with its weighted padding gives the output of the pipeline's 512 padded tokens."""
    torch.manual_seed(0)
    model = build_generator()
    transformer, encoder = model["transformer"], model["text_encoder"].eval()
    assert isinstance(transformer, WanTransformer3DModel)
    torch.nn.init.normal_(transformer.proj_out.weight, std=0.1)
    tokenizer = folder.build_tokenizer()
    pipe = WanPipeline(
        tokenizer=tokenizer,
        text_encoder=encoder,
        transformer=transformer,
        vae=folder.build_vae([1.0] * folder.LATENT_CHANNELS),
        scheduler=None,
    )
    latent, time = torch.randn(2, folder.LATENT_CHANNELS, 2, 4, 4), torch.tensor([900.0, 300.0])
    with torch.no_grad():
        padded, _ = pipe.encode_prompt(
            CAPTIONS, do_classifier_free_guidance=False, max_sequence_length=512
        )
        shown = transformer(latent, time, padded, return_dict=False)[0]
        transformer.set_attn_processor(DenseAttention())
        short = embed_captions(tokenizer, encoder, CAPTIONS)
        seen = transformer(latent, time, short, return_dict=False)[0]
    assert short.shape[1] < 32
    torch.testing.assert_close(seen, shown, atol=1e-4, rtol=1e-4)


def test_captions_stay_apart() -> None:
    """After the pipeline's own truncation two captions have different embeddings, and "" has its own."""
    tokenizer = folder.build_tokenizer()
    torch.manual_seed(0)
    encoder = folder.build_text_encoder(len(tokenizer)).eval()
    captions = [*CAPTIONS, CAPTIONS[0].replace("left", "right"), "something else entirely"]
    with torch.no_grad():
        embedded = embed_captions(tokenizer, encoder, captions)
    for i, one in enumerate(embedded):
        assert all(not torch.allclose(one, other, atol=1e-3) for other in embedded[i + 1 :])
