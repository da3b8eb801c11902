"""`GET /jobs/{id}/fidelity` over a real coordinator and real files."""

from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from hubs import claim

from warpcache_ray.quality.fidelity import psnr
from warpcache_ray.serving import fidelity
from warpcache_ray.serving.coordinator import Coordinator
from warpcache_ray.video import read_video, write_video

ASKED = {"prompt": "a", "seed": 1, "height": 32, "width": 32, "num_frames": 9}


@pytest.fixture
def frames() -> np.ndarray:
    """Nine 32×32 frames of a moving wave."""
    t, y, x = np.ogrid[:9, :32, :32]
    return (127 + 90 * np.sin((x + y + 3 * t) / 7)[..., None] * np.ones(3)).astype(np.uint8)


async def made(hub: Coordinator, path: Path, frames: np.ndarray, latents: str, **asked: Any) -> str:
    """The id of a job with this video."""
    job = (await hub.submit(ASKED | asked, {"name": "never"}))["id"]
    _, fence = await claim(hub)
    write_video(path, frames, 8, "mp4")
    result = {"path": str(path), "latents_sha256": latents, "num_frames": len(frames)}
    await hub.finish(job, fence, result, None)
    return str(job)


async def compare(client: httpx.AsyncClient, job: str, reference: str) -> httpx.Response:
    return await client.get(f"/jobs/{job}/fidelity", params={"reference": reference})


async def test_figures_are_those_of_the_files(
    hub: Coordinator, client: httpx.AsyncClient, tmp_path: Path, frames: np.ndarray, monkeypatch
) -> None:
    """PSNR of all frames as the measure for whole videos has it; of many frames only some are compared; a video is
    identical to itself."""
    first = await made(hub, tmp_path / "1.mp4", frames, "0")
    second = await made(hub, tmp_path / "2.mp4", np.roll(frames, 1, 2), "1")
    found = (await compare(client, second, first)).json()
    videos = [read_video(tmp_path / f"{n}.mp4") for n in (2, 1)]
    assert found["psnr"] == pytest.approx(psnr(*videos), abs=1e-3)
    assert 0 < found["ssim"] < 1
    assert (found["frames"], found["num_frames"], found["identical"]) == (9, 9, False)
    monkeypatch.setattr(fidelity, "FRAMES", 3)
    third = await made(hub, tmp_path / "3.mp4", frames, "0")
    same = (await compare(client, third, first)).json()
    assert same == {"psnr": 99, "ssim": 1, "frames": 3, "num_frames": 9, "identical": True}


async def test_only_answers_to_the_same_request_are_compared(
    hub: Coordinator, client: httpx.AsyncClient, tmp_path: Path, frames: np.ndarray
) -> None:
    """Another seed is refused by name, a job without a video is not ready, one that isn't there is unknown."""
    job = await made(hub, tmp_path / "1.mp4", frames, "0")
    other = await made(hub, tmp_path / "2.mp4", frames, "0", seed=2)
    refused = await compare(client, job, other)
    assert refused.status_code == 422
    assert "seed = 2; it must be 1" in refused.json()["error"]["message"]
    faster = await made(hub, tmp_path / "4.mp4", frames, "0", fps=24)
    refused = await compare(client, job, faster)
    assert "fps = 24; it must be None" in refused.json()["error"]["message"]
    moving = await made(hub, tmp_path / "3.mp4", frames, "0", output_format="gif")
    said = (await compare(client, moving, moving)).json()["error"]["message"]
    assert "is a gif, which can't be compared; mp4, webm and png can" in said
    waiting = (await hub.submit(ASKED, {"name": "never"}))["id"]
    assert (await compare(client, job, waiting)).json()["error"]["code"] == "job_not_ready"
    assert (await compare(client, job, "job_0")).status_code == 404
