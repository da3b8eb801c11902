"""Requests that stay open, over a real coordinator: how many there may be, and that each place is given back."""

import asyncio
import uuid
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from warpcache_ray.access_config import AccessConfig, ApiKey, RateLimits, digest
from warpcache_ray.config import MOST_REPLICAS, Defaults, ModelConfig, ServiceConfig
from warpcache_ray.serving import events, handles
from warpcache_ray.serving.coordinator import Coordinator

DEFAULTS = Defaults(height=32, width=32, num_frames=5, num_inference_steps=4, fps=8)
RATE = RateLimits(streams=2)
KEYS = tuple(ApiKey(name, digest(name), admin=True) for name in ("alice", "bob"))
ACCESS = AccessConfig(KEYS, rate=RATE)
CONFIG = ServiceConfig(ModelConfig("toy", device="cpu", defaults=DEFAULTS), access=ACCESS)
WAITING = {"prompt": "a", "wait": True}


@pytest.fixture
def granted(request) -> AccessConfig:
    """Who may come; a test may ask for another."""
    return getattr(request, "param", ACCESS)


@pytest.fixture
def hub(store_server, granted) -> Coordinator:
    return Coordinator(uuid.uuid4().hex, replace(CONFIG, access=granted), store_server)


def as_(name: str) -> dict[str, str]:
    return {"x-api-key": name}


async def submit(client: httpx.AsyncClient) -> str:
    job: str = (await client.post("/generate", json={"prompt": "a"}, headers=as_("bob"))).json()[
        "id"
    ]
    return job


async def opened(*requests: Any) -> list[asyncio.Task[httpx.Response]]:
    """The requests under way, none of which is answered soon."""
    tasks = [asyncio.create_task(request) for request in requests]
    done, _ = await asyncio.wait(tasks, timeout=0.2)
    assert not done, [task.result().text for task in done]
    return tasks


async def refused(client: httpx.AsyncClient, job: str, name: str) -> None:
    """Neither events are told nor is a job made that would be waited for; but all else goes on."""
    before = (await client.get("/health")).json()["jobs"]
    for request in (
        client.get(f"/jobs/{job}/events", headers=as_(name)),
        client.post("/generate", json=WAITING, headers=as_(name)),
    ):
        answer = await asyncio.wait_for(request, 5)
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (429, "rate_limited")
        assert int(answer.headers["retry-after"]) >= 1
        assert "may have 2 streams open" in error["message"]
    assert (await client.get("/health")).json()["jobs"] == before
    assert (await client.get(f"/jobs/{job}", headers=as_(name))).status_code == 200


async def test_a_client_has_so_many_streams(client, hub):
    """Events and waits together; another's are its own; with the job's end there is room again."""
    job = await submit(client)
    followed = f"/jobs/{job}/events"
    theirs = await opened(
        client.get(followed, headers=as_("alice")),
        client.post("/generate", json=WAITING, headers=as_("alice")),
    )
    await refused(client, job, "alice")
    theirs += await opened(client.get(followed, headers=as_("bob")))
    for known in await hub._jobs():
        await hub.cancel(known.id)
    for task in theirs:
        await asyncio.wait_for(task, 5)
    answers = [(await client.get(followed, headers=as_("alice"))).status_code for _ in range(3)]
    assert answers == [200] * 3


@pytest.mark.parametrize("granted", [AccessConfig(rate=RATE)], indirect=True, ids=["2"])
async def test_without_keys_all_have_so_many(client):
    """Whatever name they come by."""
    job = await submit(client)
    tasks = await opened(
        *(client.get(f"/jobs/{job}/events", headers=as_(f"name {n}")) for n in (1, 2))
    )
    await refused(client, job, "name 3")
    for task in tasks:
        task.cancel()


async def test_what_is_given_up_counts_until_it_is_over(client, hub, monkeypatch):
    """The coordinator's call outlives the client that has gone: coming and going doesn't use up its slots."""
    waits: Counter[str] = Counter()
    over = asyncio.Event()

    async def wait(job_id: str, timeout_s: float) -> dict[str, Any]:
        waits["now"] += 1
        await over.wait()
        waits["now"] -= 1
        return await hub.get(job_id)

    monkeypatch.setattr(hub, "wait", wait)
    job = await submit(client)
    for _ in range(2):
        (task,) = await opened(client.post("/generate", json=WAITING, headers=as_("alice")))
        task.cancel()
        await asyncio.wait([task])
    assert waits["now"] == 2
    await refused(client, job, "alice")
    over.set()
    await asyncio.sleep(0.05)
    assert waits["now"] == 0
    tasks = await opened(
        *(client.get(f"/jobs/{job}/events", headers=as_("alice")) for _ in range(2))
    )
    for task in tasks:
        task.cancel()


async def test_who_leaves_makes_room(client, monkeypatch):
    """As soon as what the coordinator was asked for events is over too."""
    monkeypatch.setattr(events, "HEARTBEAT_S", 0.3)
    job = await submit(client)
    for _ in range(3):
        url = f"/jobs/{job}/events"
        tasks = await opened(*(client.get(url, headers=as_("alice")) for _ in range(2)))
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        await asyncio.sleep(0.5)


async def test_replicas_are_always_heard(monkeypatch):
    """Whatever the ingress has under way, and has left behind, the coordinator has slots for the calls of all replicas
    that there may be, and this is how it is started: beside whoever asks first, as long as there is that node."""
    asked: dict[str, Any] = {}

    class Actor:
        def options(self, **options: Any) -> "Actor":
            asked.update(options)
            return self

        def remote(self, *_: Any) -> None:
            return None

    here = SimpleNamespace(get_node_id=lambda: "ab" * 28)
    monkeypatch.setattr(handles.ray, "remote", lambda kind: Actor())
    monkeypatch.setattr(handles.ray, "get_runtime_context", lambda: here)
    handles.connect("x", CONFIG)
    beside = asked["max_concurrency"] - handles.REQUESTS - handles.STREAMS
    assert beside >= MOST_REPLICAS * handles.REPLICA_CALLS
    assert handles.STREAMS < handles.REQUESTS
    place = asked["scheduling_strategy"]
    assert (place.node_id, place.soft, asked["memory"]) == ("ab" * 28, True, 1)
