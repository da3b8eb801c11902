"""Steps of a pipeline that takes no callback, and arguments by its own names."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    HunyuanImagePipeline,
    HunyuanVideoImageToVideoPipeline,
    LTXPipeline,
    QwenImagePipeline,
)
from PIL import Image
from torch import Tensor

from warpcache_ray.engine.asking import arguments, guided_by, steps_told
from warpcache_ray.engine.events import Generation
from warpcache_ray.engine.solver import output_weights
from warpcache_ray.errors import Cancelled, InvalidRequest
from warpcache_ray.models.pipelines import guidance_scale, guided


class Silent:
    """A pipeline whose call takes no callback; it denoises a one."""

    def __init__(self) -> None:
        self.scheduler = FlowMatchEulerDiscreteScheduler()

    def __call__(self, steps: int = 4) -> Tensor:
        self.scheduler.set_timesteps(steps)
        latents = torch.ones(1, 1)
        for timestep in self.scheduler.timesteps:
            latents = self.scheduler.step(latents, timestep, latents, return_dict=False)[0]
        return latents


def test_steps_are_heard_at_the_scheduler() -> None:
    """Each with the latents that it ends with; the scheduler is as it was afterwards."""
    pipeline, heard = Silent(), []
    plain = pipeline()

    def ended(pipe: Any, index: int, timestep: Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
        assert pipe is pipeline
        heard.append((index, float(timestep), tensors["latents"]))
        assert output_weights(pipe.scheduler) is not None
        return {}

    with steps_told(pipeline, ended) as given:
        assert given == {}
        assert torch.equal(pipeline(), plain)
    assert [index for index, _, _ in heard] == [0, 1, 2, 3]
    assert [at for _, at, _ in heard] == pipeline.scheduler.timesteps.tolist()
    assert torch.equal(heard[-1][2], plain)
    assert torch.equal(pipeline(), plain)
    assert len(heard) == 4


def test_what_is_heard_may_change_and_end_it() -> None:
    """Latents that are given back are gone on with; an error ends the run."""
    pipeline = Silent()

    def ended(pipe: Any, index: int, timestep: Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
        if index == 2:
            raise Cancelled("enough")
        return {"latents": torch.zeros(1, 1)} if index == 1 else {}

    with steps_told(pipeline, ended), pytest.raises(Cancelled):
        pipeline()
    with steps_told(pipeline, lambda *_: {"latents": torch.zeros(1, 1)}):
        assert torch.equal(pipeline(), torch.zeros(1, 1))


def test_arguments_have_the_pipelines_names() -> None:
    """Guidance, speed, what its authors give always; an image has no frames but one."""
    asked = Generation("a", 1, 64, 64, guidance_scale=3.0, fps=8)
    ltx = LTXPipeline.__new__(LTXPipeline)
    vars(ltx).update(vae_temporal_compression_ratio=8)
    size = {"prompt": "a", "height": 64, "width": 64}
    assert arguments(ltx, asked) == {**size, "guidance_scale": 3.0, "frame_rate": 8}
    image = QwenImagePipeline.__new__(QwenImagePipeline)
    own = {"true_cfg_scale": 3.0, "negative_prompt": " "}
    assert arguments(image, asked) == {**size, **own}
    assert arguments(image, Generation("a", 1, 64, 64, 1, negative_prompt="b")) == {
        **size,
        "negative_prompt": "b",
    }
    with pytest.raises(InvalidRequest, match="num_frames = 9: QwenImagePipeline makes images"):
        arguments(image, Generation("a", 1, num_frames=9))


def test_some_frame_is_left() -> None:
    """Of those asked for HunyuanVideo's first image-to-video model leaves out four; its second one doesn't."""
    pipeline = HunyuanVideoImageToVideoPipeline.__new__(HunyuanVideoImageToVideoPipeline)
    kind, image = {"image_condition_type": "latent_concat"}, Image.new("RGB", (64, 64))
    vars(pipeline).update(vae_scale_factor_temporal=4, transformer=SimpleNamespace(config=kind))
    for frames in (1, 4):
        with pytest.raises(
            InvalidRequest, match=f"num_frames = {frames}: .* at least 5"
        ) as refused:
            arguments(pipeline, Generation("a", 1, num_frames=frames, image=image))
        assert refused.value.param == "num_frames"
    assert arguments(pipeline, Generation("a", 1, num_frames=5, image=image))["num_frames"] == 5
    assert "num_frames" not in arguments(pipeline, Generation("a", 1, image=image))
    kind["image_condition_type"] = "token_replace"
    assert arguments(pipeline, Generation("a", 1, num_frames=1, image=image))["num_frames"] == 1


def test_a_guider_may_be_none() -> None:
    """HunyuanImage has its name even so: the scale that was asked for is refused, as it takes none."""
    pipeline = HunyuanImagePipeline.__new__(HunyuanImagePipeline)
    vars(pipeline).update(guider=None)
    with guided_by(pipeline, 3.0):
        pass
    with pytest.raises(InvalidRequest, match=r"guidance_scale = 3.0: HunyuanImagePipeline has no"):
        arguments(pipeline, Generation("a", 1, guidance_scale=3.0))


def test_a_scale_that_the_pipeline_keeps_nowhere_is_told() -> None:
    """Given or its own; only as long as the run lasts."""
    pipeline = QwenImagePipeline.__new__(QwenImagePipeline)
    for given, scale, both in ((None, 4.0, True), (3.0, 3.0, True), (1.0, 1.0, False)):
        with guided_by(pipeline, given):
            assert (guidance_scale(pipeline), guided(pipeline)) == (scale, both)
    assert (guidance_scale(pipeline), guided(pipeline)) == (None, False)
