"""Traces of jobs: made from records, and as a collector gets them over HTTP."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from hubs import CONFIG, INFO, claim, report, totals
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from warpcache_ray.config import parse_config
from warpcache_ray.errors import GenerationFailed, InvalidConfig
from warpcache_ray.serving import lifecycle, traces
from warpcache_ray.serving.attempts import Progress
from warpcache_ray.serving.coordinator import Coordinator
from warpcache_ray.serving.lifecycle import Job
from warpcache_ray.store.server import EmbeddedServer

TRACE, CLIENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TIMINGS = {"text": 0.5, "denoise": 2.0, "decode": 1.0, "encode": 0.25}


def lost_and_made() -> Job:
    """A job whose first attempt was lost in its second step; the second one made it, from 9.0 on, until 20.0."""
    job = lifecycle.claim(Job("job_1", {"prompt": "a"}, {"name": "never"}, 1.0), "r1", 0, 3.0)
    job = lifecycle.report(job, 1, Progress.told(totals(2)), 5.0)
    job = lifecycle.claim(lifecycle.lose(job, 1, 3, 1, 8.0), "r2", 1, 9.0, ranks=2)
    job = lifecycle.report(job, 2, Progress.told(totals(4)), 19.0)
    return lifecycle.succeed(job, 2, {"timings": TIMINGS}, 20.0)


def test_spans_of_a_job() -> None:
    """From submission to end; each attempt after its wait; the lost one is an error, the job isn't; the stages of the
    one that published follow each other up to its end."""
    span = traces.span_of(lost_and_made())
    assert (span.start, span.end, span.error, span.values["attempts"]) == (1.0, 20.0, None, 2)
    found = [(s.name, s.start, s.end, s.error) for s in span.within]
    assert found == [
        ("queue", 1.0, 3.0, None),
        ("attempt", 3.0, 8.0, "worker_lost"),
        ("queue", 5.0, 9.0, None),
        ("attempt", 9.0, 20.0, None),
    ]
    stages = span.within[3].within
    assert [s.name for s in stages] == list(TIMINGS)
    assert [s.end - s.start for s in stages] == pytest.approx(list(TIMINGS.values()))
    assert [s.end for s in stages] == [*(s.start for s in stages[1:]), 20.0]
    assert (span.within[3].values["ranks"], span.within[3].values["attempt"]) == (2, 2)


class Collector(BaseHTTPRequestHandler):
    """Takes OTLP in."""

    got: list[Any]

    def do_POST(self) -> None:
        """One export."""
        body = self.rfile.read(int(self.headers["content-length"]))
        request = ExportTraceServiceRequest.FromString(body)
        self.got += [s for r in request.resource_spans for p in r.scope_spans for s in p.spans]
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def collector() -> Iterator[tuple[str, list[Any]]]:
    """Its URL, and the spans that it got."""
    got: list[Any] = []
    server = HTTPServer(("127.0.0.1", 0), type("Own", (Collector,), {"got": got}))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1/traces", got
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def hub(store_server: EmbeddedServer, collector: tuple[str, list[Any]]) -> Coordinator:
    config = replace(CONFIG, trace_url=collector[0], name=uuid.uuid4().hex)
    return Coordinator(uuid.uuid4().hex, config, store_server)


async def test_a_request_its_job_and_its_stages_are_one_trace(
    hub: Coordinator, client: httpx.AsyncClient, collector: tuple[str, list[Any]]
) -> None:
    """It is the client's own, where that sends one; a failure is told as such; each job once."""
    asked = {"traceparent": f"00-{TRACE}-{CLIENT}-01"}
    await client.post("/generate", json={"prompt": "a"}, headers=asked)
    job, fence = await claim(hub)
    await report(hub, job, fence, totals(4))
    await hub.finish(job, fence, {"path": "x", "timings": TIMINGS}, None)
    await client.post("/generate", json={"prompt": "b"})
    failing, fence = await claim(hub)
    error = GenerationFailed("no").to_dict()
    for _ in range(2):
        await hub.finish(failing, fence, {}, error)
    traces.provider(hub.config.trace_url, hub.config.name).force_flush()
    spans = {span.span_id: span for span in collector[1]}
    ours = [span for span in spans.values() if span.trace_id.hex() == TRACE]

    def path(span: Any) -> str:
        above = spans.get(span.parent_span_id)
        return f"{path(above)} > {span.name}" if above else span.name

    request = "POST /generate"
    whole = f"{request} > job > attempt"
    expected = [request, f"{request} > job", f"{request} > job > queue", whole]
    assert sorted(map(path, ours)) == sorted([*expected, *(f"{whole} > {s}" for s in TIMINGS)])
    assert next(s for s in ours if s.name == request).parent_span_id.hex() == CLIENT
    jobs = [span for span in spans.values() if span.name == "job"]
    assert sorted(span.status.message for span in jobs) == ["", "generation_failed"]


async def test_nothing_is_traced_unasked(
    store_server: EmbeddedServer, api_of: Callable[[Coordinator], FastAPI], monkeypatch
) -> None:
    """By default no provider is made, and a job's request is as it was."""
    monkeypatch.setattr(traces, "provider", None)
    hub = Coordinator(uuid.uuid4().hex, CONFIG, store_server)
    await hub.claim("replica_1", INFO, 0.01)
    transport = httpx.ASGITransport(api_of(hub))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        record = (await client.post("/generate", json={"prompt": "a"})).json()
    job, fence = await claim(hub)
    assert await hub.finish(job, fence, {"path": "x"}, None)
    assert "traceparent" not in record["request"]


def test_what_is_missing_is_said_before_anything_starts(monkeypatch) -> None:
    """With the field, and what to install."""
    config = parse_config({"model": {"path": "x"}, "trace_url": "http://localhost:4318/v1/traces"})
    traces.check(config)
    monkeypatch.setattr(traces, "NEEDED", ("no_such_package.sdk",))
    with pytest.raises(InvalidConfig, match=r"warpcache-ray\[traces\]") as raised:
        traces.check(config)
    assert raised.value.param == "trace_url"
