"""The HTTP routes over a real coordinator, a task of the test playing the replica."""

import asyncio
import base64
import json
import uuid
from collections import deque
from collections.abc import AsyncIterator

import numpy as np
import pytest
from hubs import INFO

from warpcache_ray.config import Defaults, Limits, ModelConfig, ServiceConfig
from warpcache_ray.core.policies import POLICIES
from warpcache_ray.errors import GenerationFailed
from warpcache_ray.serving.answers import FinishedRecord, Health, JobRecord
from warpcache_ray.serving.coordinator import Coordinator
from warpcache_ray.serving.schemas import GenerateRequest
from warpcache_ray.store.server import EmbeddedServer
from warpcache_ray.video import read_video, write_video

DEFAULTS = Defaults(height=32, width=32, num_frames=5, num_inference_steps=4, fps=8)
LIMITS = Limits(height=128, width=128, num_frames=33, num_inference_steps=50, queue=3)
CONFIG = ServiceConfig(ModelConfig("toy", device="cpu", defaults=DEFAULTS, limits=LIMITS))
TOTALS = {"step": 4, "total": 4, "hits": 3, "misses": 1, "warped": 0, "recomputed": 2}
TOTALS |= {"cache_bytes": 8, "summary": {"hit_rate": 0.75}, "drifts": [0.1]}
TOTALS |= {"peak_memory_bytes": 9, "checkpoint_step": None, "epoch": 0}


K1, K2 = "6ab9f1eb8f7d3388", "015f7e6bc5aeaf48"
"""`printf k1 | sha256sum | cut -c -16`"""


@pytest.fixture
def hub(store_server: EmbeddedServer) -> Coordinator:
    return Coordinator(uuid.uuid4().hex, CONFIG, store_server)


@pytest.fixture
async def replica(hub, tmp_path) -> AsyncIterator[asyncio.Task[None]]:
    """Takes one job and makes a video; fails it if its prompt says so."""

    async def work() -> None:
        attempt = await hub.claim("replica_1", INFO, 60.0)
        request, place = attempt["request"], (attempt["job_id"], attempt["fence"])
        assert not (await hub.report(*place, TOTALS, "replica_1", INFO)).cancel
        if request["prompt"] == "fail":
            await hub.finish(*place, {}, GenerationFailed("as asked").to_dict())
            return
        path = tmp_path / f"{place[0]}.{request['output_format']}"
        frames = np.zeros((5, 32, 32, 3), np.uint8)
        frames[:, :, :16] = np.arange(5)[:, None, None, None] * 40
        write_video(path, frames, request["fps"], request["output_format"])
        await hub.finish(*place, {"path": str(path), "latents_sha256": "0" * 64}, None)

    task = asyncio.create_task(work())
    yield task
    task.cancel()


@pytest.mark.parametrize(
    ("fields", "param", "told"),
    [
        ({"height": "64"}, "height", ["'64'", "integer"]),
        ({"num_frames": 5.5}, "num_frames", ["5.5", "integer"]),
        ({"policy": 5}, "policy", ["5"]),
        ({"policy": "magic"}, "policy", ["'magic'", *POLICIES]),
        ({"policy": {"name": []}}, "policy", ["[]", *POLICIES]),
        ({"policy": {"name": "interval", "n": 2}}, "policy.n", ["'n'", "every", "max_skips"]),
        ({"policy": {"name": "interval", "every": 0}}, "policy.every", ["0", "1 or more"]),
        ({"priority": "urgent"}, "priority", ["'urgent'", "low", "normal", "high"]),
        ({"quality": "best"}, "quality", ["'best'", "exact", "high", "balanced", "fast"]),
        ({"heigth": 64}, "heigth", ["64", *GenerateRequest.model_fields]),
        ({"prompt": ""}, "prompt", ["''", "at least 1"]),
        ({"prompt": "  "}, "prompt", ["'  '", "blank"]),
        ({"policy": "never", "quality": "fast"}, None, ["policy", "quality", "one of them"]),
        ({"width": 40}, "width", ["40", "multiple of 16"]),
        ({"num_frames": 16}, "num_frames", ["16", "multiple of 4"]),
        ({"height": 256}, "height", ["256", "at most 128"]),
        ({"num_inference_steps": 51}, "num_inference_steps", ["51", "at most 50"]),
        ({"output_format": "avi"}, "output_format", ["'avi'", "mp4", "webm", "gif"]),
        ({"seed": -1}, "seed", ["-1", "0"]),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_refusals(fields, param, told, client, hub):
    """422 names the field, its value and what is allowed; no job is made."""
    answer = await client.post("/generate", json={"prompt": "a", **fields})
    assert answer.status_code == 422
    error = answer.json()["error"]
    assert error["param"] == param
    assert [word for word in told if word not in error["message"]] == []
    assert not any((await hub.health())["jobs"].values())


@pytest.mark.parametrize("number", ["NaN", "Infinity"])
async def test_numbers_that_json_lacks(number, client, hub):
    """What can't be written in a record is refused, and leaves none behind."""
    body = f'{{"prompt": "a", "policy": {{"name": "worldcache", "threshold": {number}}}}}'
    headers = {"content-type": "application/json"}
    answer = await client.post("/generate", content=body, headers=headers)
    assert answer.status_code == 422
    assert not any((await hub.health())["jobs"].values())


@pytest.mark.parametrize(
    ("body", "status"), [(b'{"prompt": ', 400), (b"x" * (1 << 20) + b"x", 413)], ids=["400", "413"]
)
async def test_bodies_are_checked(body, status, client):
    """Broken JSON and a body over 1 MB are refused as such."""
    headers = {"content-type": "application/json"}
    assert (await client.post("/generate", content=body, headers=headers)).status_code == status


@pytest.mark.parametrize(("method", "path"), [("GET", ""), ("DELETE", ""), ("GET", "/video")])
async def test_unknown_jobs(method, path, client):
    """404 that names the id."""
    answer = await client.request(method, f"/jobs/job_x{path}")
    assert answer.status_code == 404
    assert "job_x" in answer.json()["error"]["message"]


async def test_without_replicas(lonely, hub):
    """503 with a retry hint for work and models, and no job is taken in."""
    for answer in (
        await lonely.post("/generate", json={"prompt": "a"}),
        await lonely.get("/models"),
    ):
        assert answer.status_code == 503
        assert answer.headers["retry-after"]
    assert (await lonely.get("/health")).status_code == 503
    assert not any((await hub.health())["jobs"].values())


async def test_the_id_comes_at_once(client):
    """The answer doesn't wait: a queued job with its full policy, defaults and a drawn seed."""
    answer = await client.post("/generate", json={"prompt": "a", "quality": "fast"})
    job = answer.json()
    assert (answer.status_code, job["status"], job["video"]) == (200, "queued", None)
    assert (job["policy"]["name"], job["policy"]["threshold"]) == ("worldcache", 0.16)
    assert job["request"].items() >= {"height": 32, "num_frames": 5, "fps": 8}.items()
    assert job["request"]["seed"] >= 0
    assert (await client.get(f"/jobs/{job['id']}")).json() == job
    answer = await client.get(f"/jobs/{job['id']}/video")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "job_not_ready")


@pytest.mark.parametrize(("rate", "seconds"), [(None, "2"), (1e-5, "1"), (2e-3, "41")])
async def test_a_full_queue(rate, seconds, client, hub):
    """429 once as many jobs wait as may; it says when the running one will have made room, if that is known: at least
    after a second, rounded up."""
    if rate is not None:
        hub.rates.seen["never"] = deque([rate])
    body = {"prompt": "a", "policy": "never"}
    await client.post("/generate", json=body)
    await hub.claim("replica_1", INFO, 1.0)
    answers = [await client.post("/generate", json=body) for _ in range(4)]
    assert [a.status_code for a in answers] == [200, 200, 200, 429]
    assert answers[3].headers["retry-after"] == seconds


async def test_clients_are_told_apart_by_their_keys(client, hub):
    """A key's job goes before another key's second one, and comes in where that one's next is refused; neither key nor
    client is in a record."""
    body = {"prompt": "a"}
    jobs = []
    bearer = {"authorization": "Bearer k2"}
    for headers in ({"x-api-key": "k1"}, {"x-api-key": "k1"}, bearer, {}, {"x-api-key": "k1"}):
        answer = await client.post("/generate", json=body, headers=headers)
        assert ("k1" in answer.text, answer.status_code) == (False, 200 if len(jobs) < 4 else 429)
        jobs.append(answer.json())
    assert "client" not in jobs[0]
    assert {job.client for job in await hub._jobs()} == {K1, K2, "anonymous"}
    positions = [(await client.get(f"/jobs/{j['id']}")).json()["queue_position"] for j in jobs[:4]]
    assert positions == [1, 4, 2, 3]


async def test_a_job_of_high_priority_goes_first(client, hub):
    """Its record says so at once."""
    for priority, position in (("low", 1), ("normal", 1), ("high", 1)):
        answer = await client.post("/generate", json={"prompt": "a", "priority": priority})
        record = answer.json()
        assert (record["request"]["priority"], record["queue_position"]) == (priority, position)
    assert (await hub.claim("replica_1", INFO, 1.0))["job_id"] == record["id"]


async def test_wait_answers_with_the_end(client, replica):
    """The record of a success with the video's address, which gives the video."""
    job = (await client.post("/generate", json={"prompt": "a", "seed": 7, "wait": True})).json()
    assert (job["status"], job["progress"], job["cache"]) == ("succeeded", 1.0, TOTALS["summary"])
    assert "path" not in job["result"]
    video = await client.get(job["video"])
    assert (video.headers["content-type"], video.headers["x-seed"]) == ("video/mp4", "7")


async def test_wait_for_a_failure(client, replica):
    """The error's status, the error and the record."""
    answer = await client.post("/generate", json={"prompt": "fail", "wait": True})
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "generation_failed"
    assert answer.json()["job"]["status"] == "failed"


@pytest.mark.parametrize(("form", "mime"), [("mp4", "video/mp4"), ("gif", "image/gif")])
@pytest.mark.parametrize("way", ["accept", "b64_json"])
async def test_the_video_itself(way, form, mime, client, replica, tmp_path):
    """Its bytes under its media type, or in base64 in the record, in the format asked for."""
    body = {"prompt": "a", "output_format": form}
    if way == "accept":
        answer = await client.post("/generate", json=body, headers={"accept": mime})
        assert answer.headers["content-type"] == mime
        content = answer.content
    else:
        body |= {"wait": True, "response_format": "b64_json"}
        content = base64.b64decode((await client.post("/generate", json=body)).json()["b64_json"])
    path = tmp_path / f"answer.{form}"
    path.write_bytes(content)
    assert read_video(path).shape == (5, 32, 32, 3)


async def test_delete_cancels_a_queued_job(client, hub):
    """It ends at once; whoever waits gets 499; a second DELETE finds it so."""
    waiting = asyncio.create_task(client.post("/generate", json={"prompt": "a", "wait": True}))
    async with asyncio.timeout(5):
        while not (await hub.health())["jobs"]["queued"]:
            await asyncio.sleep(0.005)
    (job_id,) = [job.id for job in await hub._jobs()]
    for _ in range(2):
        assert (await client.delete(f"/jobs/{job_id}")).json()["status"] == "cancelled"
    answer = await asyncio.wait_for(waiting, 5)
    assert (answer.status_code, answer.json()["error"]["code"]) == (499, "cancelled")


async def test_descriptions(client):
    """/health, /models, /policies and /metrics tell what the service is, and are plain JSON or text."""
    health, models, policies = [
        json.loads((await client.get(path)).text) for path in ("/health", "/models", "/policies")
    ]
    assert (health["status"], health["replicas"]) == ("ok", 1)
    assert models.items() >= {"path": "toy", **INFO}.items()
    assert (models["defaults"]["height"], models["limits"]["height"]) == (32, 128)
    assert list(policies["policies"]) == list(POLICIES)
    assert policies["qualities"]["exact"]["name"] == "never"
    metrics = await client.get("/metrics")
    assert metrics.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert "warpcache_hit_rate" in metrics.text


@pytest.mark.parametrize("prompt", ["a", "fail"])
async def test_records_are_as_the_description_says(prompt, client, replica):
    """Of a job that waits, of one that succeeded and of one that failed: all fields are told of, in their types."""
    waiting = (await client.post("/generate", json={"prompt": prompt, "policy": "never"})).json()
    JobRecord.model_validate(waiting, extra="forbid")
    await replica
    ended = (await client.get(f"/jobs/{waiting['id']}")).json()
    JobRecord.model_validate(ended, extra="forbid")
    assert ended["attempts"]
    Health.model_validate((await client.get("/health")).json(), extra="forbid")


async def test_answers_that_waited_are_as_the_description_says(client, replica):
    """With the video in the body."""
    body = {"prompt": "a", "policy": "never", "wait": True, "response_format": "b64_json"}
    answer = FinishedRecord.model_validate((await client.post("/generate", json=body)).json())
    assert answer.b64_json
