"""Each family's configuration with a tiny model: what the service promises, and what its rank publishes."""

from __future__ import annotations

import io
import json
import uuid
from pathlib import Path
from typing import Any

import av
import diffusers
import pytest
import yaml
from PIL import Image
from served import BEGIN, END, RECORD, ROOT, STEPS, folder_of, markdown, tried
from tiny import TINY

from warpcache_ray.config import parse_config
from warpcache_ray.image import to_png
from warpcache_ray.models.pipelines import TRAITS, makes_video, refusal, temporal
from warpcache_ray.serving.artifacts import Artifact
from warpcache_ray.serving.ranks import Rank
from warpcache_ray.serving.schemas import GenerateRequest, check_shape

SAMPLE = ("ltx", "hunyuandit")
"""Names and multiples of its own, both branches in one call; an image, with learned variances."""
RECORDED = json.loads(RECORD.read_text())


def published(name: str, folder: Path) -> tuple[dict[str, Any], bytes]:
    """What the rank of the configuration's service makes of a request that leaves all but the size to it: what is told
    of the result, and its file."""
    document = yaml.safe_load((ROOT / "configs" / f"{name}.yaml").read_text())
    args = document["applications"][0]["args"]
    args["model"] |= {"path": str(folder), "device": "cpu", "dtype": "float32"}
    args |= {"parallel": {}, "results": f"memory://{uuid.uuid4().hex}"}
    config = parse_config(args)
    rank = Rank(config, 0)
    info = rank.load(None)
    side, frames = 2 * info["size_multiple"], 1 + 2 * info["frame_multiple"]
    size = {"height": side, "width": side, "num_inference_steps": STEPS}
    size |= {"num_frames": frames} if info["makes"] == "video" else {}
    asked = GenerateRequest(prompt="a cat", **size)  # type: ignore[arg-type]
    request = asked.job_request(config.model.defaults, 3)
    check_shape(request, config.model.limits, info)
    image = to_png(Image.new("RGB", (side, side), "red")) if info["takes_image"] != "none" else None
    attempt = {"id": "job_1#1", "job_id": "job_1", "fence": 1, "epoch": 0, "request": request}
    made, error = rank.generate({**attempt, "policy": config.policy}, None, image)
    assert error is None
    return made, Artifact(made["path"]).read()


def check_published(name: str, folder: Path) -> None:
    """A video of as many frames as are told, or a PNG of the size asked for."""
    made, file = published(name, folder)
    if RECORDED[name]["makes"] == "image":
        with Image.open(io.BytesIO(file)) as image:
            assert (image.format, image.size) == ("PNG", (made["width"], made["height"]))
        assert made["num_frames"] == 1
    else:
        with av.open(io.BytesIO(file)) as container:
            assert len(list(container.decode(video=0))) == made["num_frames"] > 1


@pytest.mark.parametrize("name", SAMPLE)
def test_a_sample_of_families_is_served(name: str, tmp_path: Path) -> None:
    """What the record tells of it is so, and the rank publishes what was asked for."""
    folder = folder_of(name, tmp_path)
    assert tried(name, folder) == RECORDED[name]
    check_published(name, folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in TINY if name not in SAMPLE])
def test_every_family_is_served(name: str, tmp_path: Path) -> None:
    """The rest of them."""
    folder = folder_of(name, tmp_path)
    assert tried(name, folder) == RECORDED[name]
    check_published(name, folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["wan", "hunyuan"])
def test_the_first_families_are_served_alike(name: str, folders: dict[str, Path]) -> None:
    """Wan 2.1 and HunyuanVideo, whose tiny models many tests have."""
    assert tried(name, folders[name])["resumed"]
    made, _ = published(name, folders[name])
    assert made["num_frames"] > 1


def test_the_record_is_of_every_family() -> None:
    """But those whose tiny models stand elsewhere; and the README shows it."""
    configs = {p.stem for p in (ROOT / "configs").glob("*.yaml")}
    others = {name for name in configs if not name.startswith("toyworld")} - set(TINY)
    assert others == {"wan", "hunyuan", "cosmos"}
    assert list(RECORDED) == list(TINY)
    readme = (ROOT / "README.md").read_text()
    assert readme[readme.index(BEGIN) + len(BEGIN) : readme.index(END)].strip() == markdown(
        RECORDED
    )


def test_traits_are_of_pipelines_that_exist() -> None:
    """Under the names that diffusers has for them."""
    assert all(hasattr(diffusers, name) for name in TRAITS)


def test_what_is_not_served_says_why() -> None:
    """By what its class lacks, or what the service has no place for."""
    has = {"scheduler", "vae", "vae_scale_factor_spatial"}.__contains__
    assert refusal(diffusers.WanPipeline, has) is None
    assert refusal(diffusers.WanPipeline, lambda name: name == "vae") == (
        "has no scheduler, vae_scale_factor_spatial"
    )
    assert refusal(diffusers.LTX2Pipeline, has) == (
        "makes sound beside the video, which the service can't give"
    )
    assert refusal(diffusers.HunyuanVideo15ImageToVideoPipeline, has) == "has no height, width"
    needs = {
        diffusers.WanVideoToVideoPipeline: "video",
        diffusers.LucyEditPipeline: "video",
        diffusers.CogVideoXFunControlPipeline: "control_video",
        diffusers.WanAnimatePipeline: "pose_video, face_video",
        diffusers.Cosmos2_5_TransferPipeline: "controls",
    }
    for kind, what in needs.items():
        assert refusal(kind, has) == f"needs {what}, which the service can't give"
    silent = "tells of its steps neither by callback_on_step_end nor by num_timesteps"
    assert refusal(diffusers.PixArtSigmaPipeline, has) == silent


def test_every_pipeline_with_sound_says_so() -> None:
    """All of LTX-2's."""
    kinds = [
        getattr(diffusers, n)
        for n in dir(diffusers)
        if n.startswith("LTX2") and n.endswith("Pipeline")
    ]
    assert len(kinds) > 5
    for kind in kinds:
        assert refusal(kind, lambda name: True) is not None, kind


def test_what_is_made_follows_from_the_call() -> None:
    """Whatever the decoder could: Latte's video has an image's, Cosmos' image a video's."""
    latte = diffusers.LattePipeline.__new__(diffusers.LattePipeline)
    assert temporal(latte) == 1
    assert makes_video(diffusers.SanaImageToVideoPipeline)
    cosmos = diffusers.Cosmos2TextToImagePipeline.__new__(diffusers.Cosmos2TextToImagePipeline)
    vars(cosmos).update(vae_scale_factor_temporal=4)
    assert temporal(cosmos) is None
