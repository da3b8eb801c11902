"""The events of a job over HTTP: a real coordinator, the test playing the replica."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from hubs import INFO

from warpcache_ray.config import Limits, ModelConfig, ServiceConfig
from warpcache_ray.errors import Cancelled, GenerationFailed, Unavailable, WorkerLost
from warpcache_ray.serving import events as events_module
from warpcache_ray.serving import jobs as jobs_module
from warpcache_ray.serving.coordinator import Coordinator
from warpcache_ray.store import events as store_module

CONFIG = ServiceConfig(ModelConfig("toy", device="cpu", limits=Limits()))
TOTALS = {"total": 4, "hits": 0, "misses": 0, "warped": 0, "recomputed": 1, "cache_bytes": 8}
TOTALS |= {"drifts": [0.1], "peak_memory_bytes": 9, "epoch": 0}
SOON = 5.0
A_WHILE = 0.2

Told = dict[str, Any]


@dataclass
class Following:
    """What one response has sent so far; while `reading` isn't set, its client takes nothing."""

    sent: bytes = b""
    reading: asyncio.Event = field(default_factory=asyncio.Event)
    ended: bool = False

    @property
    def events(self) -> list[Told]:
        """The events of it, as their fields, data parsed."""
        return [told for told in _parse(self.sent) if "event" in told]

    async def until(self, happened: Callable[[], bool]) -> None:
        """Waits for what must come soon."""
        async with asyncio.timeout(SOON):
            while not happened():
                await asyncio.sleep(0.005)


def _parse(text: bytes) -> list[Told]:
    blocks = [block.splitlines() for block in text.decode().split("\n\n")[:-1]]
    found = [dict(line.split(": ", 1) for line in block) for block in blocks]
    return [told | {"data": json.loads(told["data"])} if "data" in told else told for told in found]


@asynccontextmanager
async def following(api: FastAPI, job_id: str, last: str | None = None) -> AsyncIterator[Following]:
    """A client that reads while the job is at work, and leaves at the end of the block."""
    seen, left = Following(), asyncio.Event()
    seen.reading.set()
    asked = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive() -> dict[str, Any]:
        if asked:
            return asked.pop()
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        await seen.reading.wait()
        seen.sent += message.get("body", b"")
        seen.ended = message["type"] == "http.response.body" and not message.get("more_body")

    scope = {"type": "http", "method": "GET", "path": f"/jobs/{job_id}/events", "query_string": b""}
    scope["headers"] = [(b"last-event-id", last.encode())] if last else []
    task = asyncio.create_task(api(scope, receive, send))
    yield seen
    left.set()
    await asyncio.wait_for(task, SOON)


@pytest.fixture(autouse=True)
def every_step(monkeypatch) -> None:
    """No step is left out."""
    monkeypatch.setattr(jobs_module, "STEP_S", 0.0)


@pytest.fixture
def hub(application, store_server) -> Coordinator:
    return Coordinator(application, CONFIG, store_server)


@pytest.fixture
def api(hub, api_of) -> FastAPI:
    return api_of(hub)


@pytest.fixture
async def client(api) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(api)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


async def _submit(hub: Coordinator) -> str:
    job = await hub.submit({"prompt": "a"}, {"name": "never"})
    return job["id"]


async def _claim(hub: Coordinator) -> int:
    return (await hub.claim("replica_1", INFO, SOON))["fence"]


async def _report(hub, job_id: str, fence: int, step: int, kept: int | None = None) -> None:
    told = TOTALS | {"step": step, "checkpoint_step": kept, "summary": {"hits": step}}
    await hub.report(job_id, fence, told, "replica_1", INFO)


async def _made(hub: Coordinator) -> str:
    """A job with a life of its own: two attempts, a checkpoint, a video."""
    job_id = await _submit(hub)
    await _report(hub, job_id, await _claim(hub), 2, kept=2)
    await hub.finish(job_id, 1, {}, WorkerLost("x").to_dict())
    await _report(hub, job_id, await _claim(hub), 3)
    await hub.finish(job_id, 2, {"path": "/v.mp4", "bytes": 3}, None)
    return job_id


LIFE = ["queued", "running", "step", "checkpoint", "lost", "running", "step", "succeeded"]


async def test_the_life_of_a_job(hub, client):
    """Each turn in its order, with what there is to say of it; the end is the record, as the job's route has it but
    for the outlook."""
    job_id = await _made(hub)
    answer = await client.get(f"/jobs/{job_id}/events")
    assert answer.headers["content-type"].startswith("text/event-stream")
    first, *told = _parse(answer.content)
    assert first == {"retry": "2000"}
    assert [event["event"] for event in told] == LIFE
    data = [event["data"] for event in told]
    record = (await client.get(f"/jobs/{job_id}")).json()
    assert data[1] == {"attempt": 1, "epoch": 0}
    progress = {"step": 2, "total_steps": 4, "progress": 0.5}
    assert data[2] == {"attempt": 1, **progress, "cache": {"hits": 2}}
    assert data[3] == {"attempt": 1, "step": 2}
    assert data[4] == {"attempt": 1, "epoch": record["epoch"]}
    assert data[5] == {"attempt": 2, "epoch": record["epoch"]}
    # Where a job waits is known when it is asked for.
    assert data[7] | {"queue_position": None, "eta_s": None} == record
    assert record["video"] == f"/jobs/{job_id}/video"


@pytest.mark.parametrize("running", [True, False])
async def test_a_cancelled_job(running, hub, client):
    """A running one tells that its end was asked for, then the end; a queued one ends at once."""
    job_id = await _submit(hub)
    if running:
        await _claim(hub)
        await hub.cancel(job_id)
        await hub.cancel(job_id)
        await hub.finish(job_id, 1, {}, Cancelled("after step 1").to_dict())
    else:
        await hub.cancel(job_id)
    told = _parse((await client.get(f"/jobs/{job_id}/events")).content)[1:]
    kinds = [event["event"] for event in told]
    assert kinds == ["queued", *(["running", "ending"] if running else []), "cancelled"]
    if running:
        assert told[2]["data"]["error"]["code"] == "cancelled"


async def test_a_failed_job(hub, client):
    """Its last event has the error."""
    job_id = await _submit(hub)
    await hub.finish(job_id, await _claim(hub), {}, GenerationFailed("no").to_dict())
    *_, last = _parse((await client.get(f"/jobs/{job_id}/events")).content)
    assert (last["event"], last["data"]["error"]["code"]) == ("failed", "generation_failed")


@pytest.mark.parametrize("batch", [100, 3])
async def test_replay(batch, hub, client, monkeypatch):
    """After any event's id come just those that follow it, however they are read; after the last one it is 204."""
    monkeypatch.setattr(store_module, "BATCH", batch)
    url = f"/jobs/{await _made(hub)}/events"
    told = _parse((await client.get(url)).content)[1:]
    assert len({event["id"] for event in told}) == len(LIFE)
    for place, event in enumerate(told[:-1]):
        answer = await client.get(url, headers={"Last-Event-ID": event["id"]})
        assert _parse(answer.content)[1:] == told[place + 1 :]
    answer = await client.get(url, headers={"Last-Event-ID": told[-1]["id"]})
    assert (answer.status_code, answer.content) == (204, b"")


@pytest.mark.parametrize("last", ["x", "1", "-1", "1-", "1-2-3", "9" * 20 + "-0", "1-0\n"])
async def test_ids_that_are_none(last, hub, client):
    """422 names the header, its value and what is allowed."""
    job_id = await _submit(hub)
    sent = {"Last-Event-ID": last.encode()}
    answer = await client.get(f"/jobs/{job_id}/events", headers=sent)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (422, "Last-Event-ID")
    assert repr(last) in error["message"]
    assert "1732199999123-0" in error["message"]


async def test_unknown_jobs(client):
    """404 that names the id, not a stream."""
    answer = await client.get("/jobs/job_x/events")
    assert answer.status_code == 404
    assert "job_x" in answer.json()["error"]["message"]


async def test_events_come_while_the_job_is_at_work(hub, api):
    """Each turn is there before the next one; several clients hear the same; the stream ends with the job."""
    job_id = await _submit(hub)
    async with following(api, job_id) as one, following(api, job_id) as other:
        for turn, kind in [
            (lambda: None, "queued"),
            (lambda: _claim(hub), "running"),
            (lambda: _report(hub, job_id, 1, 1), "step"),
            (lambda: _report(hub, job_id, 1, 1, kept=1), "checkpoint"),
            (lambda: hub.cancel(job_id), "ending"),
            (lambda: hub.finish(job_id, 1, {}, None), "succeeded"),
        ]:
            done = turn()
            if done is not None:
                assert not one.ended
                await done
            for each in (one, other):
                await each.until(lambda: bool(each.events) and each.events[-1]["event"] == kind)  # noqa: B023
        await one.until(lambda: one.ended and other.ended)
    assert one.sent == other.sent


async def test_heartbeats_while_nothing_happens(hub, api, monkeypatch):
    """Comments, which are no events, keep coming; an event isn't late for them."""
    monkeypatch.setattr(events_module, "HEARTBEAT_S", 0.02)
    job_id = await _submit(hub)
    async with following(api, job_id) as client:
        await client.until(lambda: client.sent.count(b"\n\n: still there\n\n") >= 3)
        assert [event["event"] for event in client.events] == ["queued"]
        await _claim(hub)
        await client.until(lambda: len(client.events) == 2)
        assert not client.ended


async def test_steps_may_be_left_out_but_nothing_else(hub, client, monkeypatch):
    """Of many reports in a moment, the steps are told with what comes next, the last one with the end."""
    monkeypatch.setattr(jobs_module, "STEP_S", 60.0)
    monkeypatch.setattr(jobs_module, "PERSIST_S", 60.0)
    job_id = await _submit(hub)
    await _claim(hub)
    for step in range(1, 100):
        await _report(hub, job_id, 1, step, kept=50 if step >= 50 else None)
    await hub.finish(job_id, 1, {}, None)
    told = _parse((await client.get(f"/jobs/{job_id}/events")).content)[1:]
    found = [(event["event"], event["data"].get("step")) for event in told[2:]]
    assert found == [
        ("step", 50),
        ("checkpoint", 50),
        ("step", 99),
        ("succeeded", 99),
    ]


async def test_steps_are_told_soon(hub, api, monkeypatch):
    """One that waits for its turn comes with a later report, without another step."""
    monkeypatch.setattr(jobs_module, "STEP_S", A_WHILE)
    monkeypatch.setattr(jobs_module, "PERSIST_S", 60.0)
    job_id = await _submit(hub)
    await _claim(hub)
    async with following(api, job_id) as client:
        for step in (1, 2, 3):
            await _report(hub, job_id, 1, step)
        async with asyncio.timeout(SOON):
            while not client.events or client.events[-1]["data"].get("step") != 3:
                await _report(hub, job_id, 1, 3)
                await asyncio.sleep(0.01)
        assert len(client.events) == 3


async def test_a_restart_of_the_coordinator(hub, application, store_server, api_of):
    """The next one has all events of before, and adds to them as if nothing was: none is lost or told twice."""
    job_id = await _submit(hub)
    await _report(hub, job_id, await _claim(hub), 2, kept=2)
    fresh = Coordinator(application, CONFIG, store_server)
    transport = httpx.ASGITransport(api_of(fresh))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        await _report(fresh, job_id, 1, 2, kept=2)
        await _report(fresh, job_id, 1, 3, kept=2)
        await fresh.finish(job_id, 1, {}, None)
        told = _parse((await client.get(f"/jobs/{job_id}/events")).content)[1:]
    wanted = ["queued", "running", "step", "checkpoint", "step", "succeeded"]
    assert [event["event"] for event in told] == wanted


async def test_a_stream_outlives_the_coordinators_absence(hub, api, monkeypatch):
    """A client that is connected meanwhile hears heartbeats, then what happened."""
    monkeypatch.setattr(events_module, "RECONNECT_S", 0.01)
    monkeypatch.setattr(events_module, "HEARTBEAT_S", 0.01)
    job_id = await _submit(hub)
    there, asked = hub.events, asyncio.Event()

    async def away(*arguments: Any) -> None:
        asked.set()
        raise Unavailable("the coordinator is restarting; try again")

    async with following(api, job_id) as client:
        await client.until(lambda: len(client.events) == 1)
        monkeypatch.setattr(hub, "events", away)
        await asyncio.wait_for(asked.wait(), SOON)
        await _claim(hub)
        await asyncio.sleep(A_WHILE)
        assert [event["event"] for event in client.events] == ["queued"]
        assert not client.ended
        monkeypatch.setattr(hub, "events", there)
        await hub.cancel(job_id)
        await client.until(lambda: len(client.events) == 3)


async def test_a_write_whose_answer_was_lost_is_told_once(hub, client, monkeypatch):
    """The store has the end and its event but the replica hears Unavailable, and says it again."""
    job_id = await _submit(hub)
    await _claim(hub)
    store = (await hub._jobs()).store
    swap = store.swap

    async def loses_the_answer(*arguments: Any) -> bool:
        monkeypatch.setattr(store, "swap", swap)
        await swap(*arguments)
        raise Unavailable("the job store can't be reached")

    monkeypatch.setattr(store, "swap", loses_the_answer)
    with pytest.raises(Unavailable):
        await hub.finish(job_id, 1, {}, None)
    assert await hub.finish(job_id, 1, {}, None)
    told = _parse((await client.get(f"/jobs/{job_id}/events")).content)[1:]
    assert [event["event"] for event in told] == ["queued", "running", "succeeded"]


async def test_a_client_that_does_not_read(hub, api, monkeypatch):
    """Nothing is read ahead for it; when it reads again it gets all that it missed."""
    monkeypatch.setattr(events_module, "HEARTBEAT_S", 0.01)
    asked = []
    there = hub.events

    async def counted(*arguments: Any) -> Any:
        asked.append(arguments)
        return await there(*arguments)

    job_id = await _submit(hub)
    async with following(api, job_id) as client:
        await client.until(lambda: len(client.events) == 1)
        client.reading.clear()
        await asyncio.sleep(A_WHILE)
        monkeypatch.setattr(hub, "events", counted)
        await _claim(hub)
        for step in (1, 2, 3):
            await _report(hub, job_id, 1, step)
        await asyncio.sleep(A_WHILE)
        assert asked == []
        client.reading.set()
        await client.until(lambda: len(client.events) == 5)


async def test_a_client_that_leaves(hub, api):
    """Its stream ends, and the job goes on."""
    job_id = await _submit(hub)
    async with following(api, job_id) as client:
        await client.until(lambda: len(client.events) == 1)
    assert not client.ended
    assert (await hub.get(job_id))["status"] == "queued"


async def test_events_go_with_the_job(hub, api, monkeypatch):
    """Who follows a job that expires is let go; who comes later meets 404."""
    monkeypatch.setattr(events_module, "HEARTBEAT_S", 0.01)
    job_id = await _submit(hub)
    async with following(api, job_id) as client:
        await client.until(lambda: len(client.events) == 1)
        await (await hub._jobs()).remove(job_id)
        await client.until(lambda: client.ended)
    assert await (await hub._jobs()).store.events.read(job_id) == []
