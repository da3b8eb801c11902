"""Finished videos on their way to clients, from a folder and from a kind of storage that isn't one."""

from __future__ import annotations

import asyncio
import base64
import uuid
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest
from hubs import CONFIG, INFO, SOON, claim, submit, until

from warpcache_ray.errors import ArtifactGone, NotFound, StorageFailed
from warpcache_ray.serving import coordinator
from warpcache_ray.serving.artifacts import Artifact, Artifacts
from warpcache_ray.serving.coordinator import Coordinator
from warpcache_ray.video import encode

VIDEO = encode(np.zeros((5, 32, 32, 3), np.uint8), 8, "mp4")


@pytest.fixture(params=["folder", "memory"])
def artifacts(request: pytest.FixtureRequest, tmp_path: Path) -> Artifacts:
    """Where the service keeps its videos."""
    return Artifacts(str(tmp_path) if request.param == "folder" else f"memory://{uuid.uuid4().hex}")


@pytest.fixture
def hub(application, store_server, artifacts) -> Coordinator:
    config = replace(CONFIG, results=artifacts.url)
    return Coordinator(application, config, store_server)


@pytest.fixture
def client(lonely) -> httpx.AsyncClient:
    return lonely


async def made(hub: Coordinator, artifacts: Artifacts) -> tuple[str, Artifact]:
    """A job that succeeded, and its video."""
    request = {"prompt": "a", "seed": 1, "output_format": "mp4", "fps": 8}
    job_id = (await hub.submit(request, {"name": "never"}))["id"]
    assert await claim(hub) == (job_id, 1)
    video = artifacts.write(job_id, "1.mp4", VIDEO)
    assert await hub.finish(job_id, 1, {"path": video.url}, None)
    return job_id, video


async def test_it_comes_whole(client, hub, artifacts):
    """Under both protocols, with type and length."""
    job_id, _ = await made(hub, artifacts)
    for path in (f"/jobs/{job_id}/video", f"/v1/videos/{job_id.replace('job', 'video')}/content"):
        answer = await client.get(path)
        assert (answer.status_code, answer.content) == (200, VIDEO)
        assert answer.headers["content-type"] == "video/mp4"
        assert answer.headers["content-length"] == str(len(VIDEO))


async def test_previews(client, hub, artifacts):
    """Are drawn from wherever the video is."""
    job_id, _ = await made(hub, artifacts)
    content = f"/v1/videos/{job_id.replace('job', 'video')}/content"
    for variant, form in (("thumbnail", "image/webp"), ("spritesheet", "image/jpeg")):
        answer = await client.get(content, params={"variant": variant})
        assert (answer.status_code, answer.headers["content-type"]) == (200, form)


async def test_ranges_of_files(client, hub, artifacts):
    """A player may ask for a part of a file."""
    job_id, video = await made(hub, artifacts)
    answer = await client.get(f"/jobs/{job_id}/video", headers={"range": "bytes=4-9"})
    wanted = (206, VIDEO[4:10]) if video.local else (200, VIDEO)
    assert (answer.status_code, answer.content) == wanted


async def test_a_video_that_is_gone(client, hub, artifacts):
    """404 with a code of its own; the record is there."""
    job_id, video = await made(hub, artifacts)
    video.remove()
    content = f"/v1/videos/{job_id.replace('job', 'video')}/content"
    for path in (f"/jobs/{job_id}/video", content, f"{content}?variant=thumbnail"):
        answer = await client.get(path)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "artifact_gone")
    assert (await client.get(f"/jobs/{job_id}")).json()["status"] == "succeeded"


async def test_removal_takes_all(client, hub, artifacts):
    """The video, those of attempts that were lost, and parts."""
    job_id, video = await made(hub, artifacts)
    artifacts.write(job_id, "0.mp4", b"lost")
    part = artifacts.write(job_id, "0.mp4.part", b"ha")
    kept, _ = await made(hub, artifacts)
    answer = await client.delete(f"/v1/videos/{job_id.replace('job', 'video')}")
    assert answer.json()["deleted"]
    assert artifacts.names(job_id) == []
    for gone in (video, part):
        with pytest.raises(ArtifactGone):
            gone.read()
    assert artifacts.names(kept) == ["1.mp4"]


async def test_time_takes_all(monkeypatch, hub, artifacts):
    """Of a failed job too, which has no video but may have left one."""
    monkeypatch.setattr(coordinator, "REAP_S", 0.01)
    job_id = await submit(hub)
    await claim(hub)
    artifacts.write(job_id, "1.mp4", b"lost")
    await hub.finish(job_id, 1, {}, {**StorageFailed("x").to_dict(), "retryable": False})
    await hub.configure(replace(hub.config, result_ttl_s=1e-6))
    with pytest.raises(NotFound):
        await until(hub, job_id, "gone")
    async with asyncio.timeout(SOON):
        while artifacts.names(job_id):
            await asyncio.sleep(0.005)


async def test_a_storage_that_fails_has_another_try(hub):
    """The job is made again, `max_attempts` times in all, and then fails for that reason."""
    job_id, error = await submit(hub), StorageFailed("the storage failed: full").to_dict()
    for fence in (1, 2):
        assert await claim(hub) == (job_id, fence)
        assert await hub.finish(job_id, fence, {}, error)
    record = await hub.get(job_id)
    assert (record["status"], record["error"]) == ("failed", error)


async def test_in_base64(client, hub, artifacts):
    """What `wait` answers with is read from there too."""
    await hub.claim("replica_1", INFO, 0.01)
    body = {"prompt": "a", "wait": True, "response_format": "b64_json"}
    asked = asyncio.create_task(client.post("/generate", json=body))
    job_id, fence = await claim(hub)
    video = artifacts.write(job_id, "1.mp4", VIDEO)
    await hub.finish(job_id, fence, {"path": video.url}, None)
    assert base64.b64decode((await asked).json()["b64_json"]) == VIDEO
