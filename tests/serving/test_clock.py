"""The machine's clock is set while jobs are at work."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace

import pytest
from hubs import CONFIG, claim, report, sample, submit, totals, until

from warpcache_ray.serving.coordinator import Coordinator

HOUR_S = 3600.0

SetClock = Callable[[float], None]


@pytest.fixture
def set_clock(monkeypatch: pytest.MonkeyPatch) -> SetClock:
    """Sets it so many seconds ahead."""
    machine = time.time

    def ahead(seconds: float) -> None:
        monkeypatch.setattr(time, "time", lambda: machine() + seconds)

    return ahead


async def test_set_forward_it_loses_no_worker(reaped: Coordinator, set_clock: SetClock) -> None:
    """A worker that has just spoken has its lease, whatever the clock says."""
    job_id = await submit(reaped)
    await claim(reaped)
    set_clock(HOUR_S)
    for _ in range(5):
        await asyncio.sleep(0.02)
    assert (await reaped.get(job_id))["status"] == "running"
    assert len((await reaped.health())["replicas"]) == 1


async def test_set_back_it_keeps_no_worker(reaped: Coordinator, set_clock: SetClock) -> None:
    """One that says nothing any more is lost when its lease is over all the same."""
    await reaped.configure(replace(CONFIG, lease_s=0.05))
    job_id = await submit(reaped)
    await claim(reaped)
    set_clock(-HOUR_S)
    await until(reaped, job_id, "queued")


async def test_set_back_it_does_not_disturb_a_job(hub: Coordinator, set_clock: SetClock) -> None:
    """A job that ends before it began, by the clock, took no time, and adds nothing to what is counted."""
    job_id = await submit(hub)
    await claim(hub)
    set_clock(-HOUR_S)
    await report(hub, job_id, 1, totals(1))
    assert await hub.finish(job_id, 1, {}, None)
    record = await hub.get(job_id)
    assert record["status"] == "succeeded"
    assert record["attempts"][0]["worker_seconds"] == 0
    assert sample(hub, "warpcache_useful_worker_seconds_total") == 0
    assert sample(hub, "warpcache_request_latency_seconds_sum") == 0
    assert not hub.rates.known
