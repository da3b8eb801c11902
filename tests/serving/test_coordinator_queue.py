"""The coordinator's queue as plain asyncio: who is next, what those who wait are told, how long they wait at most."""

import uuid
from dataclasses import replace
from typing import Any

import pytest
from hubs import SOON, claim

from warpcache_ray.config import Limits, ModelConfig, ServiceConfig
from warpcache_ray.errors import Cancelled, GenerationFailed, QueueFull, WorkerLost
from warpcache_ray.serving import coordinator
from warpcache_ray.serving.coordinator import Coordinator

CONFIG = ServiceConfig(ModelConfig("x", device="cpu", limits=Limits(queue=9)))


@pytest.fixture
def hub(monkeypatch, store_server) -> Coordinator:
    """A coordinator whose reaper never rests."""
    monkeypatch.setattr(coordinator, "REAP_S", 0.01)
    return Coordinator(uuid.uuid4().hex, CONFIG, store_server)


async def _submit(hub: Coordinator, client: str = "a", priority: str = "normal") -> str:
    request = {"prompt": "a", "priority": priority}
    return (await hub.submit(request, {"name": "never"}, client))["id"]


async def _ahead(hub: Coordinator, job_id: str) -> tuple[Any, Any]:
    record = await hub.get(job_id)
    return record["queue_position"], record["eta_s"]


def _sample(hub: Coordinator, name: str, **labels: str) -> float | None:
    return hub.metrics.registry.get_sample_value(name, labels)


async def test_clients_share_and_priorities_go_first(hub):
    """A flood's second job goes after another client's first; low ones after all."""
    low = await _submit(hub, "c", "low")
    flood = [await _submit(hub, "a") for _ in range(3)]
    other = await _submit(hub, "b")
    high = await _submit(hub, "a", "high")
    expected = [high, flood[0], other, *flood[1:], low]
    assert [(await claim(hub))[0] for _ in expected] == expected


async def test_weights_come_from_the_configuration(hub):
    """A client of weight 2 has two turns for another's one."""
    await hub.configure(replace(CONFIG, client_weights={"b": 2.0}))
    a = [await _submit(hub, "a") for _ in range(2)]
    b = [await _submit(hub, "b") for _ in range(3)]
    expected = [a[0], b[0], b[1], a[1], b[2]]
    assert [(await claim(hub))[0] for _ in expected] == expected


async def test_a_lost_job_is_next_in_its_class(hub):
    """It was admitted before all that wait there; a higher class goes first all the same."""
    lost = await _submit(hub, "a")
    assert (await claim(hub))[0] == lost
    others = [await _submit(hub, client) for client in ("b", "a")]
    await hub.finish(lost, 1, {}, WorkerLost("x").to_dict())
    high = await _submit(hub, "c", "high")
    expected = [high, lost, *others]
    assert [(await claim(hub))[0] for _ in expected] == expected


async def test_a_new_coordinator_shares_as_the_old_one(hub, store_server):
    """What a client had, and what jobs took, is known from the records."""
    jobs = {client: [await _submit(hub, client) for _ in range(2)] for client in "ab"}
    assert (await claim(hub))[0] == jobs["a"][0]
    await hub.finish(jobs["a"][0], 1, {}, None)
    fresh = Coordinator(hub.application, CONFIG, store_server)
    expected = [jobs["b"][0], jobs["a"][1], jobs["b"][1]]
    assert [(await claim(fresh))[0] for _ in expected] == expected
    assert fresh.rates == hub.rates
    assert fresh.rates.known


async def test_those_who_wait_are_told_how_long(hub):
    """A place always; a time as soon as a job has ended, also from what is under way. Nothing of both after the end."""
    jobs = [await _submit(hub) for _ in range(4)]
    assert await _ahead(hub, jobs[0]) == (1, None)
    await claim(hub, "replica_1")
    assert await _ahead(hub, jobs[2]) == (2, None)
    await hub.finish(jobs[0], 1, {}, None)
    hub.rates.seen["never"][0] = 100.0
    await claim(hub, "replica_1")
    assert [await _ahead(hub, job) for job in jobs] == [
        (None, None), (None, 100.0), (1, 200.0), (2, 300.0)
    ]  # fmt: skip
    await hub.claim("replica_2", {}, 0.01)
    assert await _ahead(hub, jobs[3]) == (1, 200.0)


async def test_only_successes_teach_what_jobs_take(hub):
    """After a failure and a cancellation nothing is known."""
    for error in (GenerationFailed("x"), Cancelled("x")):
        job = await _submit(hub)
        await claim(hub)
        await hub.finish(job, 1, {}, error.to_dict())
    assert not hub.rates.known


async def test_a_full_queue_says_when_to_come_again(hub):
    """Once the running job is through; before any has ended nobody knows."""
    await hub.configure(replace(CONFIG, model=replace(CONFIG.model, limits=Limits(queue=1))))
    for known in (None, 100.0):
        job = await _submit(hub)
        await claim(hub, "replica_1")
        waiting = await _submit(hub)
        with pytest.raises(QueueFull) as caught:
            await _submit(hub)
        assert caught.value.retry_after_s == known
        await hub.cancel(waiting)
        await hub.finish(job, 1, {}, None)
        hub.rates.seen["never"][0] = 100.0


async def test_a_flood_keeps_nobody_out(hub):
    """Whoever fills the queue is refused; others come in, until they have their share of it."""
    for _ in range(9):
        await _submit(hub, "flood")
    for client, share in (("flood", 0), ("b", 4), ("c", 3), ("flood", 0)):
        for _ in range(share):
            await _submit(hub, client)
        with pytest.raises(QueueFull, match="of them yours"):
            await _submit(hub, client)


async def test_a_job_that_waited_too_long_fails(hub):
    """As queue_timeout, which may be tried again; one that runs by then goes on."""
    running, waiting = await _submit(hub), await _submit(hub)
    assert (await claim(hub))[0] == running
    await hub.configure(replace(CONFIG, queue_timeout_s=0.05))
    record = await hub.wait(waiting, SOON)
    assert (record["status"], record["error"]["code"]) == ("failed", "queue_timeout")
    assert record["error"]["retryable"]
    assert "0.05 s" in record["error"]["message"]
    assert (await hub.get(running))["status"] == "running"


async def test_an_attempt_that_takes_too_long_is_ended(hub):
    """Its replica is told to end, and the job fails as attempt_timeout, without another attempt."""
    await hub.configure(replace(CONFIG, attempt_timeout_s=0.05))
    job = await _submit(hub)
    await claim(hub)
    assert (await hub.control(job, 1, 0, SOON)).cancel
    await hub.finish(job, 1, {}, Cancelled("after step 1").to_dict())
    record = await hub.get(job)
    assert (record["status"], record["error"]["code"]) == ("failed", "attempt_timeout")
    assert not record["error"]["retryable"]


async def test_the_queue_is_measured(hub):
    """Jobs by priority, what they will take, and how long the claimed ones waited."""
    for priority in ("low", "low", "normal"):
        await _submit(hub, priority=priority)
    await hub.finish((await claim(hub))[0], 1, {}, None)
    hub.rates.seen["never"][0] = 100.0
    assert 'warpcache_queue_jobs{priority="low"} 2.0' in await hub.metrics_text()
    assert _sample(hub, "warpcache_queue_jobs", priority="normal") == 0
    assert _sample(hub, "warpcache_queue_cost_seconds") == 200.0
    assert _sample(hub, "warpcache_queue_wait_seconds_count") == 1
