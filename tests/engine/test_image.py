"""Videos that begin with an image, on the trained demo model."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image

import warpcache_ray
from warpcache_ray.engine.checkpoint import Checkpoint
from warpcache_ray.engine.engine import Engine
from warpcache_ray.engine.events import Control, Generation, Result, StepEvent
from warpcache_ray.engine.output import noisy_part
from warpcache_ray.errors import Cancelled, InvalidRequest
from warpcache_ray.policy_spec import parse_policy
from warpcache_ray.quality.fidelity import psnr
from warpcache_ray.toyworld.captions import parse
from warpcache_ray.toyworld.scene import render, sample_layout

FOLDER = Path(warpcache_ray.__file__).parent / "toyworld" / "wan-i2v"
CAPTION = "a red circle moving right fast over a blue background"
OTHER = "a yellow square moving up slow over a green background"
NEVER = parse_policy("never")


def first_frame(caption: str, seed: int) -> Image.Image:
    """The first frame of a scene of the toy world."""
    scene = parse(caption)
    assert scene is not None
    frame = render(scene, sample_layout(scene, random.Random(seed)))[0]
    return Image.fromarray((frame.numpy() * 255).round().astype(np.uint8))


IMAGE, ANOTHER = first_frame(CAPTION, 1), first_frame(OTHER, 2)


def generation(**changes: Any) -> Generation:
    size = {"height": 64, "width": 64, "num_frames": 17, "num_inference_steps": 6}
    return Generation(**{"prompt": CAPTION, "seed": 3, "image": IMAGE, **size, **changes})


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.load(FOLDER)


@pytest.fixture(scope="module")
def whole(engine: Engine) -> Result:
    """An uncached video."""
    return engine.generate(generation(), NEVER)


def test_the_video_begins_with_the_image(engine: Engine, whole: Result) -> None:
    """Its first frame is that image and no other."""
    other = engine.generate(generation(prompt=OTHER, image=ANOTHER), NEVER)
    for made, given, not_given in ((whole, IMAGE, ANOTHER), (other, ANOTHER, IMAGE)):
        near, far = (psnr(made.frames[0], np.asarray(image)) for image in (given, not_given))
        assert near > 20
        assert near > far + 8


def test_uncached_it_is_what_diffusers_makes(whole: Result) -> None:
    """The same latents."""
    pipe = DiffusionPipeline.from_pretrained(FOLDER, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    asked = generation().pipeline_arguments()
    generator = torch.Generator().manual_seed(3)
    latents = pipe(**asked, generator=generator, output_type="latent").frames
    assert torch.equal(latents, whole.latents)


@pytest.mark.parametrize("policy", ["never", "auto", "first_block"])
def test_a_run_goes_on_from_its_checkpoint(engine: Engine, whole: Result, policy: str) -> None:
    """With the same image the uncached one ends with the same bytes, a cached one as near as in one piece."""
    chosen = parse_policy({"auto": {"name": "auto", "max_calls": 5}}.get(policy, policy))
    kept: list[bytes] = []

    def on_step(event: StepEvent) -> Control:
        if event.index == 3:
            kept.append(event.checkpoint().to_bytes())
        return Control(cancel=event.index == 3)

    with pytest.raises(Cancelled):
        engine.generate(generation(), chosen, on_step)
    checkpoint = Checkpoint.from_bytes(kept[0])
    rest = Engine.load(FOLDER).generate(generation(), chosen, checkpoint=checkpoint)
    assert rest.resumed_at == 4
    if policy == "never":
        assert rest.latents_sha256 == whole.latents_sha256
        np.testing.assert_array_equal(rest.frames, whole.frames)
    else:
        assert psnr(rest.frames[0], np.asarray(IMAGE)) > 20


def test_the_image_does_not_count_as_motion(engine: Engine) -> None:
    """What is measured, cached and put together are the noisy channels; mask and image beside them never change."""
    transformer = engine.pipeline.transformer
    config = transformer.config
    assert config.in_channels > 2 * config.out_channels
    seen: list[torch.Tensor] = []

    def watch(module: Any, args: Any, kwargs: Any) -> None:
        seen.append(kwargs["hidden_states"])

    handle = transformer.register_forward_pre_hook(watch, with_kwargs=True)
    try:
        engine.generate(generation(num_inference_steps=2), NEVER)
    finally:
        handle.remove()
    first, last = seen[0], seen[-1]
    noisy = noisy_part(config, first)
    assert noisy.shape[1] == config.out_channels
    assert not torch.equal(noisy, noisy_part(config, last))
    assert torch.equal(first[:, config.out_channels :], last[:, config.out_channels :])


def test_models_tell_whether_they_take_images(engine: Engine, folders: dict[str, Path]) -> None:
    """From their pipelines' own signatures."""
    told = {name: Engine.load(folder).info.takes_image for name, folder in folders.items()}
    assert told == {"wan": "none", "hunyuan": "none", "cosmos": "optional"}
    assert engine.info.takes_image == "required"


def test_what_does_not_fit_the_model(engine: Engine, folders: dict[str, Path]) -> None:
    """An image for a model of text, and none for one of images, are refused by name before anything is run."""
    for refusing, asked, told in (
        (engine, generation(image=None), "WanImageToVideoPipeline makes videos from an image"),
        (Engine.load(folders["wan"]), generation(), "WanPipeline has no such argument"),
    ):
        with pytest.raises(InvalidRequest, match=told) as caught:
            refusing.generate(asked, NEVER)
        assert caught.value.param == "image"
