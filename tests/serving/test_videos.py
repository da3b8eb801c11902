"""The OpenAI videos protocol over a real coordinator, a task of the test playing the replica."""

import asyncio
import io
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hubs import INFO
from openai import AsyncOpenAI, NotFoundError, UnprocessableEntityError
from PIL import Image

from warpcache_ray.config import Defaults, Limits, ModelConfig, ServiceConfig
from warpcache_ray.errors import Cancelled, GenerationFailed
from warpcache_ray.serving.coordinator import Coordinator
from warpcache_ray.serving.fleet import Fleet
from warpcache_ray.serving.lifecycle import Job
from warpcache_ray.serving.videos_schema import VideoRequest
from warpcache_ray.store.server import EmbeddedServer
from warpcache_ray.video import read_video, write_video

DEFAULTS = Defaults(height=32, width=32, num_frames=5, num_inference_steps=4, fps=8)
LIMITS = Limits(height=128, width=128, num_frames=33, num_inference_steps=50)
MODEL = ModelConfig("toys/wan", device="cpu", defaults=DEFAULTS, limits=LIMITS)
CONFIG = ServiceConfig(MODEL, name="toy", result_ttl_s=60)
TOTALS = {"hits": 3, "misses": 1, "warped": 0, "recomputed": 2, "cache_bytes": 8, "drifts": []}
TOTALS |= {"peak_memory_bytes": 0, "checkpoint_step": None, "epoch": 0}
TOTALS |= {"step": 3, "total": 4, "summary": {"peak_memory_bytes": 3 << 20}}
TIMINGS = {"text": 0.25, "denoise": 1.5, "decode": 0.25}


@pytest.fixture
def hub(store_server: EmbeddedServer) -> Coordinator:
    return Coordinator(uuid.uuid4().hex, CONFIG, store_server)


@pytest.fixture
def openai(client) -> AsyncOpenAI:
    """OpenAI's own client, told nothing but where the service is."""
    return AsyncOpenAI(base_url="http://test/v1", api_key="none", http_client=client, max_retries=0)


async def begin(hub: Coordinator) -> dict[str, Any]:
    """The replica takes a job and makes three of its four steps."""
    attempt = await hub.claim("replica_1", INFO, 60.0)
    await hub.report(attempt["job_id"], attempt["fence"], TOTALS, "replica_1", INFO)
    return attempt


async def end(hub: Coordinator, attempt: dict[str, Any], folder: Path) -> Path:
    """The replica makes the attempt's video, as large as asked for."""
    request = attempt["request"]
    path = folder / attempt["job_id"] / f"{attempt['fence']}.{request['output_format']}"
    path.parent.mkdir()
    size = {name: request[name] for name in ("num_frames", "height", "width")}
    frames = np.zeros((*size.values(), 3), np.uint8)
    frames[:] = np.linspace(0, 255, len(frames)).astype(np.uint8)[:, None, None, None]
    write_video(path, frames, request["fps"], request["output_format"])
    result = {"path": str(path), "timings": TIMINGS, **size}
    await hub.finish(attempt["job_id"], attempt["fence"], result, None)
    return path


@pytest.fixture
async def replica(hub, tmp_path) -> AsyncIterator[None]:
    """Takes jobs and makes their videos; fails those whose prompt says so."""

    async def work() -> None:
        while True:
            attempt = await begin(hub)
            if attempt["request"]["prompt"] == "fail":
                error = GenerationFailed("as asked").to_dict()
                await hub.finish(attempt["job_id"], attempt["fence"], {}, error)
            else:
                await end(hub, attempt, tmp_path)

    task = asyncio.create_task(work())
    yield
    task.cancel()


async def jobs(hub: Coordinator) -> list[Job]:
    """All that the coordinator has."""
    return list(await hub._jobs())


async def test_create_and_poll(openai, client, hub, replica, tmp_path):
    """The whole way of OpenAI's client: its fields and ours become the job, its end and figures are told."""
    policy = {"name": "interval", "every": 3}
    video = await openai.videos.create_and_poll(
        prompt="a cat",
        model="toy",
        seconds="1",
        size="48x32",
        extra_body={"seed": 7, "num_inference_steps": 4, "policy": policy},
    )
    assert (video.status, video.progress, video.error) == ("completed", 100, None)
    assert (video.model, video.prompt, video.size) == ("toy", "a cat", "48x32")
    # A second at 8 fps would be 8 frames; the model makes 9.
    assert (video.seconds, video.num_frames, video.fps, video.seed) == ("1.12", 9, 8, 7)
    assert (video.inference_time_s, video.peak_memory_mb) == (2.0, 3.0)
    assert video.stage_durations == TIMINGS
    assert video.expires_at == pytest.approx(video.completed_at + 60, abs=1)
    (job,) = await jobs(hub)
    assert video.id == job.id.replace("job_", "video_")
    assert job.policy.items() >= policy.items()
    path = tmp_path / "answer.mp4"
    path.write_bytes((await client.get(video.url)).content)
    assert read_video(path).shape == (9, 32, 48, 3)


async def test_states_on_the_way(openai, hub, tmp_path):
    """Queued, then in progress with the share of the steps, then completed; the pace of polling is told meanwhile."""
    asked = await openai.videos.with_raw_response.create(prompt="a")
    video = asked.parse()
    assert (video.status, video.progress) == ("queued", 0)
    assert (video.size, video.seconds) == ("32x32", "0.62")
    attempt = await begin(hub)
    going = await openai.videos.with_raw_response.retrieve(video.id)
    assert (going.parse().status, going.parse().progress) == ("in_progress", 75)
    assert int(asked.headers["openai-poll-after-ms"]) > 0
    assert int(going.headers["openai-poll-after-ms"]) > 0
    await end(hub, attempt, tmp_path)
    done = await openai.videos.with_raw_response.retrieve(video.id)
    assert done.parse().status == "completed"
    assert "openai-poll-after-ms" not in done.headers


async def test_the_client_is_told_apart(openai, hub):
    """Its key for fair shares counts here too, and so does a priority."""
    keyed = openai.with_options(default_headers={"x-api-key": "k1"})
    await keyed.videos.create(prompt="a", extra_body={"priority": "low"})
    await openai.videos.create(prompt="a")
    one, other = await jobs(hub)
    assert one.client != other.client
    assert (one.priority, other.priority) == ("low", "normal")


async def test_idempotency_keys(openai, hub):
    """One job however often a request is sent, also when no replica is left; a new one once the video is deleted."""
    keyed = openai.with_options(default_headers={"Idempotency-Key": "one"})
    video = await keyed.videos.create(prompt="a", seconds="1")
    hub.fleet = Fleet()
    assert (await keyed.videos.create(prompt="a", seconds="1")).id == video.id
    with pytest.raises(UnprocessableEntityError, match="Idempotency-Key"):
        await keyed.videos.create(prompt="a", seconds="2")
    await hub.claim("replica_1", INFO, 1.0)
    await hub.cancel(video.id.replace("video_", "job_"))
    await hub.finish(video.id.replace("video_", "job_"), 1, {}, Cancelled("").to_dict())
    assert (await keyed.videos.delete(video.id)).deleted
    assert (await keyed.videos.create(prompt="a", seconds="1")).id != video.id


async def test_a_failed_video(openai, replica):
    """Asking for a failure succeeds, so that pollers end; it carries a typed error."""
    video = await openai.videos.create_and_poll(prompt="fail")
    assert (video.status, video.completed_at is None) == ("failed", False)
    assert (video.error.code, video.error.message) == ("generation_failed", "as asked")
    with pytest.raises(NotFoundError) as caught:
        await openai.videos.download_content(video.id)
    assert caught.value.code == "job_not_ready"
    assert f"{video.id}' is failed" in caught.value.message


async def test_deleting_cancels_what_waits(openai):
    """A queued video ends as failed with the code cancelled, and says so until it is deleted once more."""
    video = await openai.videos.create(prompt="a")
    assert not (await openai.videos.delete(video.id)).deleted
    found = await openai.videos.retrieve(video.id)
    assert (found.status, found.error.code) == ("failed", "cancelled")
    assert (await openai.videos.delete(video.id)).deleted
    with pytest.raises(NotFoundError):
        await openai.videos.retrieve(video.id)


async def test_deleting_cancels_what_runs(openai, hub):
    """A running one is told to end, and is in progress until it has."""
    video = await openai.videos.create(prompt="a")
    attempt = await begin(hub)
    place = (attempt["job_id"], attempt["fence"])
    assert not (await openai.videos.delete(video.id)).deleted
    assert (await openai.videos.retrieve(video.id)).status == "in_progress"
    assert (await hub.report(*place, TOTALS, "replica_1", INFO)).cancel
    await hub.finish(*place, {}, Cancelled("cancelled").to_dict())
    found = await openai.videos.retrieve(video.id)
    assert (found.status, found.error.code, found.progress) == ("failed", "cancelled", 75)


async def test_deleting_a_finished_video(openai, client, replica, tmp_path):
    """Its file goes with it, and nobody knows it any more."""
    video = await openai.videos.create_and_poll(prompt="a")
    kept = await openai.videos.create_and_poll(prompt="a")
    assert len(list(tmp_path.iterdir())) == 2
    gone = await openai.videos.delete(video.id)
    assert (gone.id, gone.object, gone.deleted) == (video.id, "video.deleted", True)
    assert [p.name for p in tmp_path.iterdir()] == [kept.id.replace("video_", "job_")]
    for method in ("retrieve", "delete", "download_content"):
        with pytest.raises(NotFoundError, match=video.id):
            await getattr(openai.videos, method)(video.id)
    assert [v.id async for v in await openai.videos.list()] == [kept.id]
    assert (await client.get(f"/jobs/{video.id.replace('video_', 'job_')}")).status_code == 404


async def test_deleting_buys_no_turn(openai, hub):
    """A client that deletes each of its videos is still charged for them: the next turn is the other's."""
    for key in ("k1", "k1", "k2"):
        keyed = openai.with_options(default_headers={"x-api-key": key})
        await keyed.videos.create(prompt=key)
    first = await hub.claim("replica_1", INFO, 1.0)
    await hub.finish(first["job_id"], first["fence"], {}, None)
    assert (await openai.videos.delete(first["job_id"].replace("job_", "video_"))).deleted
    second = await hub.claim("replica_1", INFO, 1.0)
    assert (first["request"]["prompt"], second["request"]["prompt"]) == ("k1", "k2")


@pytest.mark.parametrize("order", ["asc", "desc"])
async def test_pages(order, openai):
    """Following the pages gives every video once, by age; the newest first if nothing is said."""
    made = [(await openai.videos.create(prompt=str(i))).id for i in range(5)]
    wanted = made if order == "asc" else made[::-1]
    page = await openai.videos.list(limit=2, order=order)
    assert [v.id for v in page.data] == wanted[:2]
    assert (page.first_id, page.last_id, page.has_more) == (*wanted[:2], True)
    assert [v.id async for v in page] == wanted
    rest = await openai.videos.list(after=wanted[2], order=order, limit=2)
    assert ([v.id for v in rest.data], rest.has_more) == (wanted[3:], False)
    assert [v.id for v in (await openai.videos.list()).data] == made[::-1]


async def test_an_empty_list(client):
    """Its ends are null."""
    answer = await client.get("/v1/videos")
    ends = {"first_id": None, "last_id": None}
    assert answer.json() == {"object": "list", "data": [], "has_more": False, **ends}


@pytest.mark.parametrize("form", ["mp4", "gif"])
async def test_contents(form, openai, replica, tmp_path):
    """The video in its format, its first frame, and all five frames of it on one sheet."""
    video = await openai.videos.create_and_poll(prompt="a", extra_body={"output_format": form})
    content = await openai.videos.download_content(video.id)
    (tmp_path / f"answer.{form}").write_bytes(content.content)
    assert read_video(tmp_path / f"answer.{form}").shape == (5, 32, 32, 3)
    thumbnail = await openai.videos.download_content(video.id, variant="thumbnail")
    assert thumbnail.response.headers["content-type"] == "image/webp"
    assert Image.open(io.BytesIO(thumbnail.content)).size == (32, 32)
    sheet = await openai.videos.download_content(video.id, variant="spritesheet")
    assert sheet.response.headers["content-type"] == "image/jpeg"
    assert Image.open(io.BytesIO(sheet.content)).size == (4 * 32, 2 * 32)


async def test_models(openai, client):
    """What is served is listed; both of its names may be asked for, and sglang's benchmark learns one."""
    (model,) = (await openai.models.list()).data
    assert (model.id, model.root) == ("toy", "toys/wan")
    assert (await client.get("/v1/model_info")).json() == {"model_path": "toys/wan"}
    for name in (model.id, model.root):
        assert (await openai.videos.create(prompt="a", model=name)).model == "toy"


async def test_another_model(openai, hub):
    """It's refused with the name of the one there is; no job is made."""
    with pytest.raises(NotFoundError) as caught:
        await openai.videos.create(prompt="a", model="sora-2")
    assert (caught.value.param, await jobs(hub)) == ("model", [])
    assert [w for w in ("'sora-2'", "'toy'", "toys/wan") if w not in caught.value.message] == []


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("limit=0", "limit"),
        ("limit=101", "limit"),
        ("order=up", "order"),
        ("after=video_x", "after"),
    ],
)
async def test_bad_pages(query, param, client):
    """The parameter is named."""
    answer = await client.get(f"/v1/videos?{query}")
    assert answer.status_code == (404 if param == "after" else 422)
    assert answer.json()["error"]["param"] == param


async def test_bad_variants(client):
    """What there is is told."""
    answer = await client.get("/v1/videos/video_x/content?variant=audio")
    assert answer.status_code == 422
    assert "'spritesheet'" in answer.json()["error"]["message"]


async def test_ids_are_this_protocols(client, hub):
    """A job is known as a video here and by no other name."""
    video = (await client.post("/v1/videos", json={"prompt": "a"})).json()["id"]
    (job,) = await jobs(hub)
    assert (await client.get(f"/v1/videos/{video}")).json()["id"] == video
    assert (await client.get(f"/jobs/{job.id}")).json()["id"] == job.id
    for name in (job.id, video.removeprefix("video_"), "video_"):
        for path in ("", "/content"):
            answer = await client.get(f"/v1/videos/{name}{path}")
            assert answer.status_code == 404
            assert repr(name) in answer.json()["error"]["message"]


async def test_without_replicas(lonely, hub):
    """503 with a retry hint for work; lists and models are there."""
    answer = await lonely.post("/v1/videos", json={"prompt": "a"})
    assert (answer.status_code, "retry-after" in answer.headers) == (503, True)
    assert await jobs(hub) == []
    for path in ("/v1/videos", "/v1/models", "/v1/model_info"):
        assert (await lonely.get(path)).status_code == 200


async def test_it_is_documented(client):
    """The fields stand in the service's own description, for each kind of body."""
    described = (await client.get("/openapi.json")).json()["paths"]["/v1/videos"]["post"]
    kinds = described["requestBody"]["content"]
    assert {"application/json", "multipart/form-data"} < set(kinds)
    for kind in kinds.values():
        assert set(kind["schema"]["properties"]) == set(VideoRequest.model_fields)
