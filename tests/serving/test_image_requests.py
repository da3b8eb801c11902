"""Requests with images on both protocols, to a model that needs one, one that takes one and one of text alone."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from hubs import INFO
from openai import APIStatusError, AsyncOpenAI, UnprocessableEntityError
from PIL import Image

from warpcache_ray.config import Defaults, Limits, ModelConfig, ServiceConfig
from warpcache_ray.serving.artifacts import Artifacts
from warpcache_ray.serving.coordinator import Coordinator
from warpcache_ray.serving.lifecycle import Job
from warpcache_ray.serving.references import NAME

DEFAULTS = Defaults(height=32, width=48, num_frames=5, num_inference_steps=4, fps=8)
LIMITS = Limits(height=128, width=128, num_frames=33, num_inference_steps=50, queue=2)
MODEL = ModelConfig("toys/wan", device="cpu", defaults=DEFAULTS, limits=LIMITS)
JSON = {"content-type": "application/json"}
ROUTES = [("/generate", "image"), ("/v1/videos", "input_reference")]


def png(width: int = 96, height: int = 64, color: str = "red") -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (width, height), color).save(data, "PNG")
    return data.getvalue()


def noise(side: int) -> bytes:
    """A PNG of about 3·side² bytes."""
    data = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (side, side, 3), np.uint8)
    Image.fromarray(pixels).save(data, "PNG")
    return data.getvalue()


def data_url(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


@pytest.fixture
def takes() -> str:
    """Whether the model takes an image."""
    return "required"


@pytest.fixture
def hub(application, store_server, tmp_path) -> Coordinator:
    (tmp_path / "results").mkdir()
    config = ServiceConfig(MODEL, name="toy", results=str(tmp_path / "results"))
    return Coordinator(application, config, store_server)


@pytest.fixture
async def client(
    hub: Coordinator, api_of: Callable[[Coordinator], FastAPI], takes: str
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a service with one idle replica."""
    await hub.claim("replica_1", {**INFO, "takes_image": takes}, 0.01)
    transport = httpx.ASGITransport(api_of(hub), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


@pytest.fixture
def openai(client: httpx.AsyncClient) -> AsyncOpenAI:
    """OpenAI's own client, told nothing but where the service is."""
    return AsyncOpenAI(base_url="http://test/v1", api_key="none", http_client=client, max_retries=0)


async def jobs(hub: Coordinator) -> list[Job]:
    """All that the coordinator has."""
    return list(await hub._jobs())


async def kept(hub: Coordinator, job: Job) -> Image.Image:
    """The image that its replica will read."""
    data = Artifacts(hub.config.artifacts).artifact(job.id, NAME).read()
    return Image.open(io.BytesIO(data))


def folders(hub: Coordinator) -> list[str]:
    """Of jobs, in storage."""
    return [p.name for p in Path(hub.config.artifacts).iterdir()]


async def test_the_openai_client_sends_a_file(openai, hub, tmp_path):
    """As its users write it; the image is kept as large as the video, the record tells its fingerprint."""
    path = tmp_path / "first.jpg"
    Image.open(io.BytesIO(png())).save(path, "JPEG")
    with path.open("rb") as file:
        video = await openai.videos.create(prompt="a", size="64x32", input_reference=file)
    (job,) = await jobs(hub)
    image = await kept(hub, job)
    assert (image.format, image.size) == ("PNG", (64, 32))
    told = job.request["image"]
    assert (told["media_type"], told["width"], told["height"]) == ("image/png", 64, 32)
    assert len(json.dumps(job.to_dict())) < 4000
    assert video.status == "queued"


WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "data URL": ("/generate", {"json": {"prompt": "a", "image": data_url(png())}}),
    "JSON": (
        "/v1/videos",
        {"json": {"prompt": "a", "input_reference": {"image_url": data_url(png())}}},
    ),
    "JSON text": ("/v1/videos", {"json": {"prompt": "a", "input_reference": data_url(png())}}),
    "extra_body": (
        "/v1/videos",
        {"json": {"prompt": "a", "extra_body": {"input_reference": data_url(png())}}},
    ),
    "file": (
        "/v1/videos",
        {"data": {"prompt": "a"}, "files": {"input_reference": ("x", png(), "text/plain")}},
    ),
    "form object": (
        "/v1/videos",
        {"data": {"prompt": "a", "input_reference": json.dumps({"image_url": data_url(png())})}},
    ),
    "form part": (
        "/v1/videos",
        {"files": {"prompt": (None, "a"), "input_reference[image_url]": (None, data_url(png()))}},
    ),
}


@pytest.mark.parametrize("way", WAYS)
async def test_one_image_whichever_way_it_comes(way, client, hub):
    """A file or its data URL, in JSON or a form, whatever type the client says it has."""
    path, body = WAYS[way]
    answer = await client.post(path, **body)
    assert answer.status_code == 200, answer.text
    (job,) = await jobs(hub)
    image = await kept(hub, job)
    assert image.size == (48, 32)
    assert image.getpixel((0, 0)) == (255, 0, 0)
    assert job.id in answer.text.replace("video_", "job_")


@pytest.mark.parametrize("takes", ["none"])
@pytest.mark.parametrize(("path", "field"), ROUTES)
async def test_a_model_of_text_refuses_images(path, field, client, hub):
    """By the field's name, with nothing kept; without one it goes as ever."""
    answer = await client.post(path, json={"prompt": "a", field: data_url(png())})
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, field)
    assert f"{field} is not supported" in answer.json()["error"]["message"]
    assert (await jobs(hub), folders(hub)) == ([], [])
    assert (await client.post(path, json={"prompt": "a", field: None})).status_code == 200


@pytest.mark.parametrize("takes", ["none"])
async def test_a_model_of_text_refuses_files(openai):
    """OpenAI's client is told the same."""
    with pytest.raises(UnprocessableEntityError) as caught:
        await openai.videos.create(prompt="a", input_reference=("a.png", png(), "image/png"))
    assert caught.value.param == "input_reference"


@pytest.mark.parametrize("takes", ["required", "optional"])
@pytest.mark.parametrize(("path", "field"), ROUTES)
async def test_without_an_image(path, field, takes, client, hub):
    """422 by the field's name where the model needs one."""
    answer = await client.post(path, json={"prompt": "a"})
    if takes == "optional":
        assert answer.status_code == 200
        assert "image" not in (await jobs(hub))[0].request
        return
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, field)
    assert f"{field} is missing" in answer.json()["error"]["message"]


REFUSED = [
    (b"GIF89a" + bytes(100), 422, "PNG, JPEG, WEBP"),
    (png()[:60], 422, "not a whole image"),
    (png(8000, 5000), 413, "8000×5000 pixels"),
]


@pytest.mark.parametrize(("path", "field"), ROUTES)
@pytest.mark.parametrize(("data", "status", "told"), REFUSED, ids=["kind", "half", "bomb"])
async def test_what_is_no_image(data, status, told, path, field, client, hub):
    """Named, and nothing is kept."""
    answer = await client.post(path, json={"prompt": "a", field: data_url(data)})
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, field)
    assert told in answer.json()["error"]["message"]
    assert (await jobs(hub), folders(hub)) == ([], [])


@pytest.mark.parametrize(("path", "field"), ROUTES)
@pytest.mark.parametrize(
    "url", ["http://example.com/a.png", "https://10.0.0.1/a.png", "file:///etc/passwd", "/etc"]
)
async def test_urls_are_refused_by_default(url, path, field, client, hub):
    """No host is listed."""
    answer = await client.post(path, json={"prompt": "a", field: {"image_url": url}})
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, field)
    assert await jobs(hub) == []


LARGE = noise(640)


@pytest.mark.parametrize("takes", ["required", "none"])
@pytest.mark.parametrize("chunked", [False, True])
async def test_bodies_with_images_may_be_larger(chunked, takes, client, hub):
    """Over 1 MB where the model takes images, on the routes that take them; nowhere else, and not without bounds."""
    assert len(LARGE) > LIMITS.body_bytes
    body = json.dumps({"prompt": "a", "input_reference": data_url(LARGE)}).encode()
    headers = {"content-type": "application/json"}

    async def chunks(data: bytes) -> AsyncIterator[bytes]:
        for start in range(0, len(data), 1 << 18):
            yield data[start : start + (1 << 18)]

    async def post(path: str, data: bytes) -> int:
        content = chunks(data) if chunked else data
        return (await client.post(path, content=content, headers=headers)).status_code

    assert await post("/v1/videos", body) == (200 if takes == "required" else 413)
    assert await post("/admin/invalidate", body) == 413
    assert await post("/jobs/x/generate/", body) == 413
    too_large = b" " * (LIMITS.body_bytes + 2 * LIMITS.image_bytes)
    assert await post("/v1/videos", too_large) == 413


@pytest.mark.parametrize("form", [False, True])
@pytest.mark.parametrize("extra", [0, 1])
async def test_what_is_larger_is_the_image_alone(extra, form, client, hub):
    """The rest of the body is bounded as where there is no image: else a policy, say, could have its room. It is
    refused before anybody parses it."""
    rest = LIMITS.body_bytes - 100
    numbers = "[" + "1," * (rest // 2) + "1" + "0" * (200 * extra) + "]"
    fields = {"prompt": "a", "negative_prompt": numbers}
    image = data_url(LARGE)
    if form:
        answer = await client.post("/v1/videos", data=fields | {"input_reference": image})
    else:
        body = json.dumps({**fields, "input_reference": {"image_url": image}}).encode()
        assert len(body) > LIMITS.body_bytes
        # Numbers, where a string was.
        body = body.replace(b'"[', b"[").replace(b']"', b"]")
        answer = await client.post("/v1/videos", content=body, headers=JSON)
    error = answer.json()["error"]
    expected = (413, "body") if extra else (422, "negative_prompt")
    assert (answer.status_code, error["param"]) == expected, error
    assert len(error["message"]) < 300
    assert await jobs(hub) == []


async def test_large_measurements_get_no_room_from_an_image(client, hub):
    """19 MB of them, as the body for a model that takes images could have been."""
    policy = {"name": "auto", "gram": {"products": [0.1] * 3_000_000}}
    answer = await client.post("/generate", json={"prompt": "a", "policy": policy})
    assert (answer.status_code, answer.json()["error"]["param"]) == (413, "body")


async def test_a_large_file_is_taken(openai, hub):
    """As OpenAI's client sends it, and as the text of a form."""
    await openai.videos.create(prompt="a", input_reference=("a.png", LARGE, "image/png"))
    await openai.videos.create(
        prompt="a", extra_body={"input_reference": {"image_url": data_url(LARGE)}}
    )
    assert [(await kept(hub, job)).size for job in await jobs(hub)] == [(48, 32)] * 2


async def test_large_bodies_wait_for_a_replica(lonely):
    """Until one is ready nobody knows whether they are allowed: 503, to be tried again."""
    answer = await lonely.post("/generate", json={"prompt": "a", "image": data_url(LARGE)})
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unavailable")


async def test_idempotency_keys_know_the_image(client, hub):
    """Sent again, as a file or a data URL, it's the same job and one image; another image is another request."""
    headers = {"Idempotency-Key": "k"}
    file = {"data": {"prompt": "a"}, "files": {"input_reference": png()}}
    text = {"json": {"prompt": "a", "input_reference": data_url(png())}}
    other = {"json": {"prompt": "a", "input_reference": data_url(png(color="blue"))}}
    ids = [
        (await client.post("/v1/videos", headers=headers, **body)).json()["id"]
        for body in (file, text, file)
    ]
    assert len(set(ids)) == 1
    answer = await client.post("/v1/videos", headers=headers, **other)
    assert answer.json()["error"]["code"] == "idempotency_conflict"
    assert folders(hub) == [job.id for job in await jobs(hub)]


async def test_a_crowd_with_one_key_leaves_one_image(client, hub):
    """Of requests that come at once all but one image are taken away again."""
    headers, body = {"Idempotency-Key": "k"}, {"prompt": "a", "input_reference": data_url(png())}
    asked = [client.post("/v1/videos", headers=headers, json=body) for _ in range(5)]
    answers = await asyncio.gather(*asked)
    assert {answer.status_code for answer in answers} == {200}
    assert folders(hub) == [job.id for job in await jobs(hub)]


async def test_a_full_queue_keeps_no_image(client, hub):
    """What isn't taken in leaves nothing."""
    asked = {"prompt": "a", "image": data_url(png())}
    statuses = [(await client.post("/generate", json=asked)).status_code for _ in range(3)]
    assert statuses == [200, 200, 429]
    assert sorted(folders(hub)) == sorted(job.id for job in await jobs(hub))


async def test_images_go_with_their_jobs(openai, hub):
    """When the video is deleted."""
    video = await openai.videos.create(prompt="a", input_reference=("a.png", png(), "image/png"))
    await openai.videos.delete(video.id)
    assert (await openai.videos.delete(video.id)).deleted
    assert folders(hub) == []


async def test_a_storage_that_takes_none(openai, hub, tmp_path):
    """503, and no job."""
    (tmp_path / "results").rmdir()
    (tmp_path / "results").write_text("a file where the folder was")
    with pytest.raises(APIStatusError) as caught:
        await openai.videos.create(prompt="a", input_reference=("a.png", png(), "image/png"))
    assert (caught.value.status_code, caught.value.code) == (503, "storage_failed")
    assert await jobs(hub) == []


@pytest.mark.parametrize("takes", ["optional"])
async def test_models_tell(client):
    """Whether an image is taken, and how large it may be."""
    told = (await client.get("/models")).json()
    assert told["takes_image"] == "optional"
    assert told["limits"]["image_bytes"] == LIMITS.image_bytes
