"""gRPC over a real coordinator and gRPC's own server and client, the test playing the replica; what Serve does between
them is `Passed`."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from fastapi import FastAPI
from google.protobuf.struct_pb2 import Value
from hubs import CONFIG, INFO, SOON, claim, report, totals, until
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from rpc_calls import ACCESS, ALICE, KEYS, Passed, as_, ended, over, problem, told

from warpcache_ray.access_config import AccessConfig, RateLimits
from warpcache_ray.config import Defaults, Limits
from warpcache_ray.errors import GenerationFailed, InvalidRequest, NotFound, Unavailable
from warpcache_ray.rpc.videos_pb2 import Event, FollowRequest, GenerateRequest, JobId
from warpcache_ray.rpc.videos_pb2_grpc import VideosStub, add_VideosServicer_to_server
from warpcache_ray.serving import events as events_module
from warpcache_ray.serving import jobs as jobs_module
from warpcache_ray.serving import rpc, traces
from warpcache_ray.serving.coordinator import Coordinator

DEFAULTS = Defaults(height=32, width=32, num_frames=5, num_inference_steps=4, fps=8)
TRACE, CLIENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
NEVER = Value(string_value="never")
REQUEST = GenerateRequest(prompt="a", policy=NEVER, seed=7)


@pytest.fixture(autouse=True)
def every_step(monkeypatch) -> None:
    """No step is left out."""
    monkeypatch.setattr(jobs_module, "STEP_S", 0.0)


@pytest.fixture
def granted(request) -> AccessConfig:
    """Who may come; a test may ask for another."""
    return getattr(request, "param", ACCESS)


@pytest.fixture
async def hub(store_server, granted) -> Coordinator:
    model = replace(CONFIG.model, defaults=DEFAULTS, limits=Limits(queue=2, body_bytes=1000))
    hub = Coordinator(uuid.uuid4().hex, replace(CONFIG, model=model, access=granted), store_server)
    await hub.claim("replica_1", INFO, 0.01)
    return hub


@pytest.fixture
def api(hub, api_of) -> FastAPI:
    return api_of(hub)


@pytest.fixture
async def http(api) -> AsyncIterator[httpx.AsyncClient]:
    """Of the same service."""
    transport = httpx.ASGITransport(api)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


@pytest.fixture
def methods(api) -> rpc.Methods:
    """As the ingress has them."""
    methods = rpc.Methods()
    methods.service = api.state.service
    return methods


@pytest.fixture
async def passed(methods) -> Passed:
    return Passed(methods)


@pytest.fixture
async def videos(passed) -> AsyncIterator[VideosStub]:
    """A client."""
    server = grpc.aio.server()
    add_VideosServicer_to_server(passed, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield VideosStub(channel)
    await server.stop(None)


async def begun(videos: VideosStub, request: GenerateRequest = REQUEST, metadata=ALICE) -> Any:
    """A call, and the id of its job, of which its first event told."""
    call = videos.Generate(request, metadata=metadata)
    event = await asyncio.wait_for(call.read(), SOON)
    assert event.kind == "queued", await call.details()
    return call, event.job_id


async def make(hub: Coordinator, path: Path, data: bytes = b"a video") -> str:
    """The replica makes the next job's video."""
    path.write_bytes(data)
    job_id, fence = await claim(hub)
    await report(hub, job_id, fence, totals(2, hits=1))
    assert await hub.finish(job_id, fence, {"path": str(path), "latents_sha256": "0"}, None)
    return job_id


async def test_from_prompt_to_video(hub, videos, http, tmp_path):
    """Events as they happen, and the record at the end, which HTTP has too; then the video, in parts."""
    data = bytes(range(256)) * (rpc.PART_BYTES // 256) + b"the rest"
    made = asyncio.create_task(make(hub, tmp_path / "a.mp4", data))
    events = await told(videos.Generate(REQUEST, metadata=ALICE))
    assert [event.kind for event in events] == ["queued", "running", "step", "succeeded"]
    assert {event.job_id for event in events} == {await made}
    step, last = events[2].data, events[3].job
    assert (step["step"], step["total_steps"], step["cache"]["hits"]) == (2, 4, 1)
    record = (await http.get(f"/jobs/{last.id}", headers=dict(ALICE))).json()
    assert (last.status, last.video, last.seed) == ("succeeded", record["video"], 7)
    assert last.result["latents_sha256"] == "0"
    job = await videos.Get(JobId(job_id=last.id), metadata=ALICE)
    assert (job.policy_version, job.fence) == (record["policy_version"], 1)
    parts = [p.data for p in await told(videos.Download(JobId(job_id=last.id), metadata=ALICE))]
    assert (len(parts), b"".join(parts)) == (2, data)


async def test_a_job_of_https_is_followed(hub, videos, http, tmp_path):
    """From its beginning, or from an event on; one that is over has no more to tell."""
    answer = await http.post("/generate", json={"prompt": "a"}, headers=dict(ALICE))
    job_id = answer.json()["id"]
    await make(hub, tmp_path / "a.mp4")
    events = await told(videos.Follow(FollowRequest(job_id=job_id), metadata=ALICE))
    assert [event.kind for event in events] == ["queued", "running", "step", "succeeded"]
    later = FollowRequest(job_id=job_id, after=events[1].id)
    assert await told(videos.Follow(later, metadata=ALICE)) == events[2:]
    over = FollowRequest(job_id=job_id, after=events[-1].id)
    assert await told(videos.Follow(over, metadata=ALICE)) == []
    wrong = FollowRequest(job_id=job_id, after="first")
    code, error = await problem(videos.Follow(wrong, metadata=ALICE))
    assert (code, error["param"]) == (grpc.StatusCode.INVALID_ARGUMENT, "after")


async def test_a_failure_is_the_calls_status_too(hub, videos):
    """Beside the record, which the last event has."""
    call, job_id = await begun(videos)
    _, fence = await claim(hub)
    await hub.finish(job_id, fence, {}, GenerationFailed("the paint has run out").to_dict())
    events = await ended(call)
    assert [event.kind for event in events] == ["running", "failed"]
    assert events[-1].job.error.code == "generation_failed"
    assert await call.code() == grpc.StatusCode.INTERNAL
    assert await call.details() == "the paint has run out"
    trailers = dict(await call.trailing_metadata())
    assert json.loads(trailers[rpc.PROBLEM])["error"]["code"] == "generation_failed"


async def test_a_failure_is_the_status_of_who_comes_later_too(hub, videos):
    """Even after the event that told of it."""
    call, job_id = await begun(videos)
    _, fence = await claim(hub)
    await hub.finish(job_id, fence, {}, GenerationFailed("the paint has run out").to_dict())
    last = (await ended(call))[-1]
    later = FollowRequest(job_id=job_id, after=last.id)
    code, error = await problem(videos.Follow(later, metadata=ALICE))
    assert (code, error["code"]) == (grpc.StatusCode.INTERNAL, "generation_failed")


async def test_a_job_that_goes_meanwhile_is_not_found(videos, methods):
    """A stream without its end is no success."""
    asked = methods.service.ask

    async def ask(method: str, *rest: Any) -> Any:
        if method in ("events", "get"):
            raise NotFound("job_id is unknown")
        return await asked(method, *rest)

    methods.service.ask = ask
    code, error = await problem(videos.Generate(REQUEST, metadata=ALICE))
    assert (code, error["code"]) == (grpc.StatusCode.NOT_FOUND, "not_found")


async def test_cancel(hub, videos):
    """A queued job at once: its record says so, and so does the status of the call that follows it."""
    call, job_id = await begun(videos)
    record = await videos.Cancel(JobId(job_id=job_id), metadata=ALICE)
    assert (record.status, record.error.code) == ("cancelled", "cancelled")
    assert [event.kind for event in await ended(call)] == ["cancelled"]
    assert await call.code() == grpc.StatusCode.CANCELLED


@pytest.mark.parametrize("cancels", [False, True])
async def test_a_client_that_leaves(hub, videos, passed, cancels):
    """Its job goes on, unless it asked otherwise."""
    asked = GenerateRequest(prompt="a", cancel_on_disconnect=cancels)
    call, job_id = await begun(videos, asked)
    call.cancel()
    await asyncio.wait_for(passed.over.wait(), SOON)
    if cancels:
        await until(hub, job_id, "cancelled")
    else:
        assert await claim(hub) == (job_id, 1)


async def test_a_coordinator_that_restarts_ends_no_stream(hub, videos, methods, monkeypatch):
    """Its job outlives it: events come when it is back."""
    monkeypatch.setattr(events_module, "RECONNECT_S", 0.0)
    asked, away = methods.service.ask, [True]

    async def ask(method: str, *rest: Any) -> Any:
        if method == "events" and away:
            away.clear()
            raise Unavailable("the coordinator is restarting; try again")
        return await asked(method, *rest)

    methods.service.ask = ask
    await over(hub, await begun(videos))
    assert not away


async def test_a_job_belongs_to_its_clients_trace(hub, videos, methods, monkeypatch):
    """Below the call's own span, which is below the client's."""
    spans, tracing = InMemorySpanExporter(), TracerProvider()
    tracing.add_span_processor(SimpleSpanProcessor(spans))
    monkeypatch.setattr(traces, "provider", lambda *_: tracing)
    service = methods.service
    service.config = replace(service.config, trace_url="http://localhost:4318/v1/traces")
    sent = f"00-{TRACE}-{CLIENT}-01"
    call, job_id = await begun(videos, metadata=as_("alice", traceparent=sent))
    (span,) = spans.get_finished_spans()
    found = (span.name, f"{span.context.trace_id:032x}", f"{span.parent.span_id:016x}")
    assert found == ("Generate", TRACE, CLIENT)
    parent = (await hub.get(job_id))["request"]["traceparent"]
    assert parent == f"00-{TRACE}-{span.context.span_id:016x}-01"
    await over(hub, (call, job_id))


async def test_once(hub, videos, tmp_path):
    """A request that is sent again has its job, from its beginning; another one under the same key is refused."""
    once = as_("alice", idempotency_key="k")
    first, job_id = await begun(videos, metadata=once)
    again, same = await begun(videos, metadata=once)
    assert same == job_id
    await make(hub, tmp_path / "a.mp4")
    assert await told(first) == await told(again)
    later = await told(videos.Generate(REQUEST, metadata=once))
    assert [event.kind for event in later] == ["queued", "running", "step", "succeeded"]
    code, error = await problem(videos.Generate(GenerateRequest(prompt="b"), metadata=once))
    assert (code, error["code"]) == (grpc.StatusCode.INVALID_ARGUMENT, "idempotency_conflict")
    blank = as_("alice", idempotency_key="a b")
    code, error = await problem(videos.Generate(REQUEST, metadata=blank))
    assert (code, error["param"]) == (grpc.StatusCode.INVALID_ARGUMENT, "Idempotency-Key")


def calls(videos: VideosStub, job_id: str, metadata: Any) -> list[Any]:
    """One of each."""
    job = JobId(job_id=job_id)
    return [
        videos.Generate(REQUEST, metadata=metadata),
        videos.Follow(FollowRequest(job_id=job_id), metadata=metadata),
        *(call(job, metadata=metadata) for call in (videos.Get, videos.Cancel, videos.Download)),
    ]


async def test_every_call_wants_a_key(videos):
    """One that is known, in either of the two ways."""
    wrong = [(), (("x-api-key", "wc_x"),), (("authorization", f"Basic {KEYS['alice']}"),)]
    for metadata in wrong:
        for call in calls(videos, "job_1", metadata):
            code, error = await problem(call)
            assert (code, error["code"]) == (grpc.StatusCode.UNAUTHENTICATED, "invalid_api_key")
    bearer = (("authorization", f"Bearer {KEYS['alice']}"),)
    assert (await problem(videos.Get(JobId(job_id="job_1"), metadata=bearer)))[0] == (
        grpc.StatusCode.NOT_FOUND
    )


async def test_others_jobs_are_unknown(hub, videos):
    """As one that never was; an admin has them all."""
    call, job_id = await begun(videos)
    for of_job in calls(videos, job_id, as_("bob"))[1:]:
        code, error = await problem(of_job)
        assert (code, error["code"]) == (grpc.StatusCode.NOT_FOUND, "not_found")
    job = await videos.Get(JobId(job_id=job_id), metadata=as_("root"))
    assert job.status == "queued"
    await over(hub, (call, job_id))


RATES = [
    RateLimits(submissions="1/minute"),
    RateLimits(requests="1/minute"),
    RateLimits(streams=1),
]


@pytest.mark.parametrize("granted", [replace(ACCESS, rate=r) for r in RATES], indirect=True)
async def test_a_client_has_so_much(hub, videos):
    """Rates and streams are those of HTTP; another client has its own."""
    first = await begun(videos)
    status, error = await problem(videos.Generate(GenerateRequest(prompt="b"), metadata=ALICE))
    assert (status, error["code"]) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "rate_limited")
    await over(hub, first, await begun(videos, metadata=as_("bob")))


async def test_the_queue_is_bounded(hub, videos):
    """Whoever it has no room for is told when to come again."""
    waiting = [await begun(videos) for _ in range(hub.config.model.limits.queue)]
    status, error = await problem(videos.Generate(REQUEST, metadata=ALICE))
    assert (status, error["code"]) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "queue_full")
    await over(hub, *waiting)


@pytest.mark.parametrize(
    ("request_", "body"),
    [
        (GenerateRequest(), {}),
        (GenerateRequest(prompt="a", height=33), {"prompt": "a", "height": 33}),
        (GenerateRequest(prompt="a", num_frames=6), {"prompt": "a", "num_frames": 6}),
        (GenerateRequest(prompt="a", lora="x"), {"prompt": "a", "lora": "x"}),
        (
            GenerateRequest(prompt="a", policy=Value(string_value="x")),
            {"prompt": "a", "policy": "x"},
        ),
        (
            GenerateRequest(prompt="a", image_file=b"x"),
            {"prompt": "a", "image": "data:;base64,eA=="},
        ),
        (
            GenerateRequest(prompt="a", webhook_url="http://10.0.0.1"),
            {"prompt": "a", "webhook_url": "http://10.0.0.1"},
        ),
    ],
    ids=["prompt", "height", "frames", "lora", "policy", "image", "webhook"],
)
async def test_what_is_refused_is_refused_alike(videos, http, request_, body):
    """Here and over HTTP, word for word."""
    answer = await http.post("/generate", json=body, headers=dict(ALICE))
    assert answer.status_code == 422
    code, error = await problem(videos.Generate(request_, metadata=ALICE))
    assert (code, error) == (grpc.StatusCode.INVALID_ARGUMENT, answer.json()["error"])


async def test_a_call_that_comes_to_nothing_has_one_event(videos):
    """Of no job: gRPC's status follows."""
    assert await ended(videos.Generate(GenerateRequest(), metadata=ALICE)) == [Event(kind="error")]


async def test_a_message_is_bounded(videos):
    """As a body is."""
    code, error = await problem(videos.Generate(GenerateRequest(prompt="a" * 2000), metadata=ALICE))
    assert (code, error["code"]) == (grpc.StatusCode.INVALID_ARGUMENT, "payload_too_large")


async def test_a_long_error_has_room_in_the_trailers(methods, videos):
    """Whatever characters the client chose."""

    async def ask(*_: Any) -> None:
        raise InvalidRequest("𝄞" * 100_000, "𝄞" * 100_000)

    methods.service.ask = ask
    code, error = await problem(videos.Get(JobId(job_id="job_1"), metadata=ALICE))
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert error["message"].startswith("𝄞𝄞")
    assert error["message"].endswith("…")


async def test_no_video(hub, videos, tmp_path):
    """Not yet, and not any more."""
    call, job_id = await begun(videos)
    code, error = await problem(videos.Download(JobId(job_id=job_id), metadata=ALICE))
    assert (code, error["code"]) == (grpc.StatusCode.NOT_FOUND, "job_not_ready")
    await make(hub, tmp_path / "a.mp4")
    await told(call)
    (tmp_path / "a.mp4").unlink()
    code, error = await problem(videos.Download(JobId(job_id=job_id), metadata=ALICE))
    assert (code, error["code"]) == (grpc.StatusCode.NOT_FOUND, "artifact_gone")


async def test_a_fault_of_ours_is_told_as_such(methods, videos, caplog):
    """Without what it was; the log has that."""

    async def ask(*_: Any) -> None:
        raise RuntimeError("hush")

    methods.service.ask = ask
    code, error = await problem(videos.Get(JobId(job_id="job_1"), metadata=ALICE))
    assert (code, error["code"]) == (grpc.StatusCode.INTERNAL, "internal_error")
    assert "hush" not in error["message"]
    assert "hush" in caplog.text
