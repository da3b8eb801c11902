"""Bodies of `POST /v1/videos`, in all the ways in which clients send them."""

import json
import uuid
from dataclasses import replace
from typing import Any

import httpx
import pytest
from hubs import INFO
from openai import AsyncOpenAI, UnprocessableEntityError

from warpcache_ray.config import Defaults, Limits, ModelConfig, ServiceConfig
from warpcache_ray.serving.coordinator import Coordinator
from warpcache_ray.serving.lifecycle import Job
from warpcache_ray.store.server import EmbeddedServer

DEFAULTS = Defaults(height=32, width=32, num_frames=5, num_inference_steps=4, fps=8)
LIMITS = Limits(height=128, width=128, num_frames=33, num_inference_steps=50)
CONFIG = ServiceConfig(ModelConfig("toys/wan", defaults=DEFAULTS, limits=LIMITS), name="toy")


@pytest.fixture
def hub(store_server: EmbeddedServer) -> Coordinator:
    return Coordinator(uuid.uuid4().hex, CONFIG, store_server)


@pytest.fixture
def openai(client) -> AsyncOpenAI:
    """OpenAI's own client, told nothing but where the service is."""
    return AsyncOpenAI(base_url="http://test/v1", api_key="none", http_client=client, max_retries=0)


async def jobs(hub: Coordinator) -> list[Job]:
    """All that the coordinator has."""
    return list(await hub._jobs())


@pytest.mark.parametrize(
    "reference",
    [("cat.png", b"\x89PNG", "image/png"), {"image_url": "http://x/cat.png"}, {"file_id": "f"}],
    ids=["file", "url", "id"],
)
async def test_input_references(reference, openai, client, hub):
    """They're refused by name, as a file and as an object, in a form and in JSON."""
    # This client can't send objects as what they are declared to be.
    whole = isinstance(reference, tuple)
    given = {"input_reference": reference}
    with pytest.raises(UnprocessableEntityError) as caught:
        await openai.videos.create(prompt="a", **(given if whole else {"extra_body": given}))
    assert caught.value.param == "input_reference"
    if not whole:
        body = {"prompt": "a", "input_reference": reference}
        answer = await client.post("/v1/videos", json=body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (422, "input_reference")
    assert await jobs(hub) == []


ASKED = {"height": 48, "width": 64, "num_frames": 9, "fps": 4, "num_inference_steps": 6, "seed": 3}
ASKED |= {"guidance_scale": 2.5, "negative_prompt": "7", "quality": "exact", "priority": "high"}
POLICY = {"name": "interval", "every": 2, "steps": [1, 3]}


def form(fields: dict[str, Any]) -> dict[str, Any]:
    """As httpx sends them in a multipart form."""
    return {"files": {name: (None, str(value)) for name, value in fields.items()}}


BESIDE = {"prompt": "1", "model": "toy"}
WAYS = {
    "JSON": {"json": BESIDE | ASKED},
    "JSON, folded": {"json": BESIDE | {"extra_body": ASKED}},
    "form": form(BESIDE | ASKED),
    "urlencoded form": {"data": BESIDE | ASKED},
    "form, folded": form(BESIDE | {"extra_body": json.dumps(ASKED)}),
    "size": form(BESIDE | ASKED | {"size": "64x16", "height": 48, "width": "null"}),
    "seconds": {"json": {**BESIDE, **ASKED, "seconds": "2", "num_frames": None}},
    "one output": form(BESIDE | ASKED | {"n": 1, "num_outputs_per_prompt": 1}),
    "lossless": {"json": BESIDE | ASKED | {"quality": "lossless", "input_reference": None}},
    "beside first": form(BESIDE | ASKED | {"extra_body": '{"height": 16, "seed": 9}'}),
}


@pytest.mark.parametrize("way", WAYS)
async def test_one_job_whichever_way_it_comes(way, client, hub):
    """Numbers, text and policy mean the same in JSON and in forms, folded into `extra_body` or not."""
    answer = await client.post("/v1/videos", **WAYS[way])
    assert answer.status_code == 200, answer.text
    (job,) = await jobs(hub)
    wanted = {name: value for name, value in ASKED.items() if name != "quality"}
    assert job.request == {"prompt": "1", "output_format": "mp4", **wanted}
    assert job.policy["name"] == "never"


@pytest.mark.parametrize("way", ["JSON", "form", "text of JSON", "openai"])
async def test_one_policy_whichever_way_it_comes(way, client, openai, hub):
    """Also as the openai client takes objects apart for a form."""
    if way == "openai":
        await openai.videos.create(prompt="a", extra_body={"policy": POLICY})
    else:
        fields = {"prompt": "a", "policy": POLICY if way == "JSON" else json.dumps(POLICY)}
        await client.post("/v1/videos", **({"json": fields} if way == "JSON" else form(fields)))
    if way == "text of JSON":
        # In JSON text is a policy's name.
        answer = await client.post("/v1/videos", json={"prompt": "a", "policy": "never"})
        assert answer.status_code == 200
    job = (await jobs(hub))[0]
    assert (job.policy["every"], tuple(job.policy["steps"])) == (2, (1, 3))


REFUSALS = [
    ({"prompt": ""}, "prompt", ["''", "at least 1"]),
    ({"size": "640"}, "size", ["'640'", "WIDTHxHEIGHT"]),
    ({"size": "64X64"}, "size", ["'64X64'"]),
    ({"size": "40x32"}, "width", ["40", "multiple of 16"]),
    ({"size": "32x256"}, "height", ["256", "at most 128"]),
    ({"seconds": "soon"}, "seconds", ["'soon'", "number"]),
    ({"seconds": "nan"}, "seconds", ["nan"]),
    ({"seconds": 0}, "seconds", ["0", "greater than 0"]),
    ({"seconds": "1e308"}, "seconds", ["3600"]),
    ({"seconds": 5}, "seconds", ["seconds = 5", "fps = 8", "num_frames = 41", "at most 33"]),
    ({"num_frames": 8}, "num_frames", ["8", "multiple of 4"]),
    ({"n": 2}, "n", ["2", "1"]),
    ({"fps": "fast"}, "fps", ["'fast'", "integer"]),
    ({"num_inference_steps": 51}, "num_inference_steps", ["at most 50"]),
    ({"quality": "best"}, "quality", ["'best'", "exact", "high"]),
    ({"policy": "magic"}, "policy", ["'magic'", "worldcache"]),
    ({"enable_teacache": True}, "enable_teacache", ["no such field", "policy", "seconds"]),
    ({"wait": True}, "wait", ["no such field"]),
    ({"extra_body": "[1]"}, "extra_body", ["[1]", "JSON object"]),
    ({"extra_body": {"colour": "red"}}, "colour", ["'red'", "no such field", "size"]),
    ({"extra_body": {"extra_body": {}}}, "extra_body", ["no such field"]),
]


@pytest.mark.parametrize("kind", ["JSON", "form"])
@pytest.mark.parametrize(("fields", "param", "told"), REFUSALS, ids=lambda v: str(v)[:30])
async def test_refusals(fields, param, told, kind, client, hub):
    """422 that names the field, its value and what is allowed, in JSON as in forms; no job is made."""
    body = {"prompt": "a", **fields}
    if kind == "JSON":
        answer = await client.post("/v1/videos", json=body)
    else:
        texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in body.items()}
        answer = await client.post("/v1/videos", **form(texts))
    assert answer.status_code == 422, answer.text
    error = answer.json()["error"]
    assert error["param"] == param
    assert [word for word in told if word not in error["message"]] == []
    assert await jobs(hub) == []


async def test_seconds_make_no_frames_of_an_image(api_of, store_server):
    """OpenAI's clients may send them always; frames that are asked for are refused."""
    config = replace(CONFIG, model=replace(CONFIG.model, defaults=Defaults(fps=8)))
    hub = Coordinator(uuid.uuid4().hex, config, store_server)
    await hub.claim("replica_1", {**INFO, "makes": "image", "frame_multiple": 1}, 0.01)
    transport = httpx.ASGITransport(api_of(hub))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        made = await client.post("/v1/videos", json={"prompt": "a", "seconds": "4"})
        refused = await client.post("/v1/videos", json={"prompt": "a", "num_frames": 9})
    assert made.status_code == 200, made.text
    assert "num_frames" not in (await jobs(hub))[0].request
    assert (refused.status_code, refused.json()["error"]["param"]) == (422, "num_frames")


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b'{"prompt": ', {}, 400),
        (b"\xff", {}, 400),
        (b"[" * 100_000, {}, 400),
        (b"", {}, 400),
        (b"[1]", {}, 422),
        (b"{}", {}, 422),
        (b"x", {"content-type": "multipart/form-data"}, 400),
        (b"x", {"content-type": "multipart/form-data; boundary=b"}, 400),
        (b" " * (1 << 20) + b"{}", {}, 413),
    ],
    ids=lambda value: str(value)[:30],
)
async def test_broken_bodies(body, headers, status, client):
    """An error of ours for each, and none is a failure of the service."""
    answer = await client.post("/v1/videos", content=body, headers=headers)
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["message"]


async def test_parts_that_do_not_fit(client):
    """A field that is both a value and an object is refused by its name."""
    fields = {"policy": "never", "policy[name]": "interval", "prompt": "a"}
    answer = await client.post("/v1/videos", **form(fields))
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, "policy")
