"""Videos that begin with an image, by the whole service: Ray Serve, a rank in a process of its own, a real fault."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
from openai import OpenAI
from PIL import Image

import warpcache_ray
from warpcache_ray.quality.fidelity import psnr
from warpcache_ray.toyworld.captions import parse
from warpcache_ray.toyworld.scene import render, sample_layout
from warpcache_ray.video import read_video

pytestmark = pytest.mark.slow

FOLDER = Path(warpcache_ray.__file__).parent / "toyworld" / "wan-i2v"
CAPTION = "a red circle moving right fast over a blue background"
SHAPE = {"height": 64, "width": 64, "num_frames": 17, "seed": 3, "guidance_scale": 4.0}


@pytest.fixture
def service(deploy: Callable[..., httpx.Client]) -> httpx.Client:
    return deploy("toyworld-i2v", str(FOLDER), checkpoint_every=2)


@pytest.fixture
def image() -> Image.Image:
    """The first frame of the caption's scene."""
    scene = parse(CAPTION)
    assert scene is not None
    frame = render(scene, sample_layout(scene, random.Random(1)))[0]
    return Image.fromarray((frame.numpy() * 255).round().astype(np.uint8))


def test_the_openai_client(service: httpx.Client, image: Image.Image, tmp_path: Path) -> None:
    """A file goes in, a video that begins with it comes out."""
    image.save(tmp_path / "first.png")
    client = OpenAI(base_url=f"{service.base_url}v1", api_key="none", max_retries=0)
    with (tmp_path / "first.png").open("rb") as file:
        video = client.videos.create_and_poll(
            prompt=CAPTION,
            input_reference=file,
            extra_body={**SHAPE, "num_inference_steps": 8, "quality": "exact"},
        )
    assert video.status == "completed", video.error
    client.videos.download_content(video.id).write_to_file(tmp_path / "video.mp4")
    frames = read_video(tmp_path / "video.mp4")
    assert frames.shape == (17, 64, 64, 3)
    assert psnr(frames[0], np.asarray(image)) > 20


def test_a_killed_rank_costs_no_image(
    service: httpx.Client,
    image: Image.Image,
    until: Callable[..., Any],
    recovered: Callable[..., Any],
) -> None:
    """The next attempt reads the same one and goes on: the same latents as if nothing had happened."""
    data = io.BytesIO()
    image.save(data, "PNG")
    files = {"input_reference": ("first.png", data.getvalue(), "image/png")}
    fields = {"prompt": CAPTION, **SHAPE, "num_inference_steps": 24, "quality": "exact"}

    def submit() -> str:
        answer = service.post("/v1/videos", data=fields, files=files).raise_for_status()
        return str(answer.json()["id"]).replace("video_", "job_")

    undisturbed = until(service, submit(), lambda r: r["finished_at"] is not None)
    assert undisturbed["status"] == "succeeded", undisturbed["error"]
    job = submit()
    until(service, job, lambda r: (r["checkpoint_step"] or 0) >= 4)
    ranks = [
        process
        for process in psutil.process_iter(["cmdline", "create_time"])
        if "ray::Rank" in " ".join(process.info["cmdline"] or [])
    ]
    max(ranks, key=lambda process: process.info["create_time"]).kill()
    record = recovered(service, job)
    assert (record["status"], record["fence"]) == ("succeeded", 2)
    assert record["result"]["resumed_at"] >= 4
    assert record["result"]["latents_sha256"] == undisturbed["result"]["latents_sha256"]
