"""Requests that are sent again under an `Idempotency-Key`."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import httpx
import pytest
from hubs import INFO

from warpcache_ray.config import Limits, ModelConfig, ServiceConfig
from warpcache_ray.errors import Unavailable
from warpcache_ray.serving import coordinator
from warpcache_ray.serving.coordinator import Coordinator

CONFIG = ServiceConfig(ModelConfig("toy", device="cpu", limits=Limits(queue=2)))
SOON = 5.0


@pytest.fixture
async def hub(application, store_server) -> Coordinator:
    """A coordinator with one idle replica."""
    hub = Coordinator(application, CONFIG, store_server)
    await hub.claim("replica_1", INFO, 0.01)
    return hub


@pytest.fixture
async def client(hub, api_of) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(api_of(hub))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


async def _post(client, key: str | bytes | None, **fields) -> httpx.Response:
    headers = {} if key is None else {"Idempotency-Key": key}
    return await client.post("/generate", json={"prompt": "a", **fields}, headers=headers)


async def _count(hub: Coordinator) -> int:
    return sum((await hub.health())["jobs"].values())


async def test_a_key_is_its_clients_own(client):
    """Two clients that chose the same name have a job each."""
    asked = {"json": {"prompt": "a"}}
    ids = {
        (await client.post("/generate", **asked, headers={"Idempotency-Key": "k", **who})).json()[
            "id"
        ]
        for who in ({"x-api-key": "one"}, {}, {"x-api-key": "one"})
    }
    assert len(ids) == 2


async def test_the_same_request_has_the_same_job(client, hub):
    """With its drawn seed, and as it stands meanwhile; the key doesn't leave the service. Without a key, or with
    another one, it is another job."""
    first = (await _post(client, "k")).json()
    assert (await _post(client, "k")).json() == first
    assert (await hub.claim("replica_1", INFO, SOON))["job_id"] == first["id"]
    again = (await _post(client, "k")).json()
    assert (again["id"], again["status"]) == (first["id"], "running")
    assert {"key", "asked"} & set(again) == set()
    others = [(await _post(client, key)).json()["id"] for key in ("l", None)]
    assert len({first["id"], *others}) == 3


async def test_another_body_is_refused(client, hub):
    """422 with a code of its own names the header and the key; the job of the key stays as it is."""
    first = (await _post(client, "k", seed=1)).json()
    for changed in ({"seed": 2}, {"seed": 1, "prompt": "b"}, {"seed": 1, "wait": True}, {}):
        answer = await _post(client, "k", **changed)
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (422, "idempotency_conflict")
        assert error["param"] == "Idempotency-Key"
        assert "'k'" in error["message"]
    assert await _count(hub) == 1
    assert (await _post(client, "k", seed=1)).json() == first


async def test_requests_at_the_same_time(client, hub):
    """All have one job; of two bodies one has it."""
    answers = await asyncio.gather(*(_post(client, "k") for _ in range(5)))
    assert len({answer.json()["id"] for answer in answers}) == await _count(hub) == 1
    rivals = await asyncio.gather(*(_post(client, "l", seed=n) for n in range(3)))
    assert sorted(answer.status_code for answer in rivals) == [200, 422, 422]
    assert await _count(hub) == 2


async def test_after_a_restart_of_the_coordinator(client, application, store_server, api_of):
    """The key stands for its job and for no other body, before any replica is there."""
    first = (await _post(client, "k")).json()
    fresh = Coordinator(application, CONFIG, store_server)
    transport = httpx.ASGITransport(api_of(fresh))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        assert (await _post(client, "k")).json() == first
        assert (await _post(client, "k", seed=3)).status_code == 422
        assert (await _post(client, "l")).status_code == 503


async def test_what_was_taken_in_is_not_refused_later(client, hub):
    """A full queue refuses new jobs alone."""
    first = (await _post(client, "k")).json()
    await _post(client, None)
    assert (await _post(client, "l")).status_code == 429
    assert (await _post(client, "k")).json() == first


async def test_a_job_that_was_never_made_does_not_hold_its_key(client, hub, monkeypatch):
    """Neither a refusal nor a store that is away takes it: the same request, or another one, may have it."""
    assert (await _post(client, "k", height=33)).status_code == 422
    store = (await hub._jobs()).store
    create = store.create

    async def away(*_) -> bool:
        raise Unavailable("the job store can't be reached")

    monkeypatch.setattr(store, "create", away)
    assert (await _post(client, "k", seed=1)).status_code == 503
    monkeypatch.setattr(store, "create", create)
    answer = await _post(client, "k", seed=2)
    assert (answer.status_code, answer.json()["status"]) == (200, "queued")
    assert (await _post(client, "k", seed=2)).json() == answer.json()


async def test_a_key_expires_with_its_job(client, hub, monkeypatch):
    """An ended job has its key for as long as it is kept; then the key is free for any request."""
    monkeypatch.setattr(coordinator, "REAP_S", 0.01)
    first = (await _post(client, "k")).json()
    await hub.cancel(first["id"])
    assert (await _post(client, "k")).json()["status"] == "cancelled"
    await hub.configure(replace(CONFIG, result_ttl_s=1e-6))
    async with asyncio.timeout(SOON):
        while (answer := await _post(client, "k", seed=2)).status_code == 422:
            await asyncio.sleep(0.01)
    assert answer.status_code == 200
    assert answer.json()["id"] != first["id"]


async def test_waiting_twice(client, hub):
    """Both who wait have the same end; who comes later has it at once."""
    waiting = [asyncio.create_task(_post(client, "k", wait=True)) for _ in range(2)]
    attempt = await hub.claim("replica_1", INFO, SOON)
    await hub.finish(attempt["job_id"], 1, {"bytes": 3}, None)
    answers = [(await asyncio.wait_for(task, SOON)).json() for task in waiting]
    answers.append((await _post(client, "k", wait=True)).json())
    assert answers[0]["status"] == "succeeded"
    assert answers == answers[:1] * 3
    assert await _count(hub) == 1


@pytest.mark.parametrize("key", [b"", b"a b", b"\xe9", b"a\tb", b"x" * 256], ids=repr)
async def test_keys_that_are_none(key, client, hub):
    """422 names the header, the key as far as it can be shown and what is allowed; no job is made."""
    answer = await _post(client, key)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (422, "Idempotency-Key")
    assert repr(key.decode("latin-1")[:99])[:-1] in error["message"]
    assert "1 to 255 visible ASCII characters" in error["message"]
    assert await _count(hub) == 0


async def test_the_longest_key(client, hub):
    """255 characters of any kind that is allowed."""
    key = ("".join(map(chr, range(33, 127))) * 3)[:255]
    first = await _post(client, key)
    assert first.status_code == 200
    assert (await _post(client, key)).json() == first.json()
