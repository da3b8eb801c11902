"""Loops that nothing but a successor ends."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace

import pytest
from hubs import CONFIG, SOON, claim, submit

from warpcache_ray.errors import Superseded, Unavailable
from warpcache_ray.serving import webhooks
from warpcache_ray.serving.loops import Loop
from warpcache_ray.store.server import EmbeddedServer


async def eventually(happened: Callable[[], bool]) -> None:
    async with asyncio.timeout(SOON):
        while not happened():
            await asyncio.sleep(0.005)


@pytest.mark.parametrize(
    "error", [OSError(24, "Too many open files"), RuntimeError("no thread"), Unavailable("away")]
)
async def test_a_round_that_fails_is_followed_by_the_next(error, caplog):
    """The log has why, with the traceback of what nobody expected."""
    caplog.set_level(logging.WARNING)
    rounds = 0

    async def round() -> None:
        nonlocal rounds
        await asyncio.sleep(0.001)
        rounds += 1
        raise error

    Loop("reaper", round).keep_up()
    await eventually(lambda: rounds > 2)
    assert str(error) in caplog.text
    assert ("Traceback" in caplog.text) == (not isinstance(error, Unavailable))


async def test_one_that_was_ended_begins_anew(caplog):
    """By whoever looks next; one that runs goes on alone."""
    caplog.set_level(logging.WARNING)
    rounds: list[asyncio.Task] = []

    async def round() -> None:
        await asyncio.sleep(0.001)
        rounds.append(asyncio.current_task())

    loop = Loop("courier", round)
    for _ in range(3):
        loop.keep_up()
    await eventually(lambda: len(rounds) > 2)
    assert len(set(rounds)) == 1
    rounds[0].cancel()
    await eventually(rounds[0].done)
    loop.keep_up()
    await eventually(lambda: len(set(rounds)) == 2)
    assert "the courier was ended" in caplog.text


async def test_a_cancellation_that_a_round_loses_ends_it():
    """A client that reports it as an error of its own can't make it go on for ever."""

    async def round() -> None:
        try:
            await asyncio.sleep(SOON)
        except asyncio.CancelledError as error:
            raise Unavailable("the connection was closed") from error

    loop = Loop("reaper", round)
    loop.keep_up()
    await asyncio.sleep(0.01)
    loop._task.cancel()
    await eventually(loop._task.done)


async def test_a_successor_ends_it(caplog):
    """It does no round more."""
    caplog.set_level(logging.WARNING)
    rounds = 0

    async def round() -> None:
        nonlocal rounds
        rounds += 1
        raise Superseded("by another")

    Loop("reaper", round).keep_up()
    await asyncio.sleep(0.05)
    assert rounds == 1
    assert "the reaper ends: by another" in caplog.text


async def test_jobs_are_reaped_while_the_store_cannot_be_watched(reaped, monkeypatch):
    """Whatever keeps its process from being looked after (no file, no thread): the store answers, leases go on."""
    failed = 0

    def start(self) -> None:
        nonlocal failed
        failed += 1
        raise OSError(24, "Too many open files")

    await reaped.health()
    monkeypatch.setattr(EmbeddedServer, "start", start)
    await eventually(lambda: failed > 2)
    await reaped.configure(replace(CONFIG, lease_s=0.02, max_attempts=1))
    job_id = await submit(reaped)
    assert await claim(reaped, "silent") == (job_id, 1)
    assert (await reaped.wait(job_id, SOON))["error"]["code"] == "worker_lost"


async def test_loops_that_were_ended_are_begun_by_the_next_call(reaped, monkeypatch):
    """So a coordinator that is asked for anything, be it its health, has all of them."""
    monkeypatch.setattr(webhooks, "LOOK_S", 0.01)
    await reaped.health()
    ended = [loop._task for loop in reaped._loops]
    for task in ended:
        task.cancel()
    await asyncio.gather(*ended, return_exceptions=True)
    await reaped.health()
    assert len(ended) == 5
    assert not any(loop._task.done() for loop in reaped._loops)
