from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline, WanImageToVideoPipeline, WanTransformer3DModel

from warpcache_ray.toyworld import folder, folder_i2v
from warpcache_ray.toyworld.train.__main__ import main
from warpcache_ray.toyworld.train.wan import build_generator

SIZE = {"height": 64, "width": 64, "num_frames": 17}


def _transformer() -> WanTransformer3DModel:
    transformer = build_generator()["transformer"]
    assert isinstance(transformer, WanTransformer3DModel)
    torch.nn.init.normal_(transformer.proj_out.weight, std=0.1)
    return transformer


def test_it_begins_as_the_text_to_video_model() -> None:
    """Whatever stands on the new channels, a widened transformer gives what the narrow one does."""
    torch.manual_seed(0)
    narrow = _transformer()
    wide = folder_i2v.widen(narrow)
    latent, time = torch.randn(1, folder.LATENT_CHANNELS, 2, 4, 4), torch.tensor([900.0])
    text = torch.randn(1, 3, folder.TEXT_DIM)
    given = torch.randn(1, folder_i2v.IN_CHANNELS - folder.LATENT_CHANNELS, 2, 4, 4)
    with torch.no_grad():
        expected = narrow(latent, time, text, return_dict=False)[0]
        seen = wide(torch.cat([latent, given], 1), time, text, return_dict=False)[0]
    torch.testing.assert_close(seen, expected)


def test_training_gives_the_first_frame_as_the_pipeline_does() -> None:
    """Mask and code, at the latents' own mean and deviation."""
    torch.manual_seed(0)
    std = torch.rand(folder.LATENT_CHANNELS) + 0.5
    vae = folder.build_vae(std.tolist())
    pipe = WanImageToVideoPipeline(None, None, vae, None)
    image = torch.rand(1, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        _, shown = pipe.prepare_latents(
            image, 1, folder.LATENT_CHANNELS, **SIZE, device="cpu", dtype=torch.float32
        )
    torch.testing.assert_close(folder_i2v.condition(vae, image, 17), shown)


@pytest.mark.slow
def test_a_run_makes_a_pipeline_that_goes_on(tmp_path: Path) -> None:
    """A few seconds of training from the demo model give an image-to-video folder, which generates; a second run
    starts from that folder and, with no time to learn, writes the same weights."""
    common = ["--arch", "wan-i2v", "--clips", "4", "--batch", "1", "--threads", "1"]
    first, second = tmp_path / "first", tmp_path / "second"
    made = first / "toyworld-wan-i2v"
    main([*common, "--out", str(first), "--max-minutes", "0.05"])
    main([*common, "--out", str(second), "--max-minutes", "0", "--start-from", str(made)])
    file = "transformer/diffusion_pytorch_model.safetensors"
    assert (second / "toyworld-wan-i2v" / file).read_bytes() == (made / file).read_bytes()
    for config in (second / "toyworld-wan-i2v").rglob("*.json"):
        assert str(tmp_path) not in config.read_text()
    pipe = DiffusionPipeline.from_pretrained(made, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    image = torch.rand(1, 3, 64, 64)
    frames = pipe(image=image, prompt="a red circle", **SIZE, num_inference_steps=2).frames[0]
    assert frames.shape == (17, 64, 64, 3)


def test_it_has_no_vae_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    """A stage that the architecture lacks is refused by name."""
    with pytest.raises(SystemExit):
        main(["--arch", "wan-i2v", "--stage", "vae"])
    assert "wan-i2v has transformer, folder, not 'vae'" in capsys.readouterr().err
