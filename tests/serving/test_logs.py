"""Logs for machines."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from hubs import CONFIG, claim, submit

from warpcache_ray.serving import logs
from warpcache_ray.serving.coordinator import Coordinator

log = logging.getLogger("warpcache_ray.serving.something")


@pytest.fixture
def package() -> Iterator[logging.Logger]:
    """The package's logger, as it was before afterwards."""
    ours = logging.getLogger("warpcache_ray")
    before = (ours.handlers[:], ours.level, ours.propagate)
    yield ours
    ours.handlers[:], ours.level, ours.propagate = before


@pytest.fixture
def lines(package: logging.Logger) -> Callable[[], list[dict[str, Any]]]:
    """What was logged so far, parsed; it was asked for twice, as by two actors of one process."""
    for _ in range(2):
        logs.install(replace(CONFIG, log_format="json"))
    written = io.StringIO()
    handler = package.handlers[-1]
    assert isinstance(handler, logging.StreamHandler)
    handler.setStream(written)
    return lambda: [json.loads(line) for line in written.getvalue().splitlines()]


def test_by_default_nothing_changes(package: logging.Logger) -> None:
    before = package.handlers[:]
    logs.install(CONFIG)
    assert (package.handlers, package.propagate) == (before, True)


def test_a_line_is_about_its_block_and_those_around_it(lines) -> None:
    """Also with an exception, which is part of the line; after the block nothing is left of it."""
    with logs.about(job="job_1", attempt=2), logs.about(rank=0):
        try:
            raise ValueError("two\nlines")  # noqa: TRY301
        except ValueError:
            log.exception("it %s", "failed")
    log.info("on")
    failed, on = lines()
    assert (failed["job"], failed["attempt"], failed["rank"]) == ("job_1", 2, 0)
    assert (failed["level"], failed["message"]) == ("error", "it failed")
    assert failed["exception"].endswith("two\nlines")
    assert on.keys() == {"time", "level", "logger", "message"}


async def test_tasks_don_t_mix(lines) -> None:
    """Of two at the same time each has its own fields, and so have the tasks that it begins."""

    async def work(name: str) -> None:
        with logs.about(job=name):
            await asyncio.sleep(0)
            await asyncio.create_task(asyncio.sleep(0))
            await asyncio.create_task(asyncio.to_thread(log.info, name))

    await asyncio.gather(work("a"), work("b"))
    assert sorted((line["message"], line["job"]) for line in lines()) == [("a", "a"), ("b", "b")]


async def test_the_end_of_a_job_is_a_line(lines, hub: Coordinator) -> None:
    """One, though it is told twice; with the job, its attempt and how it ended."""
    await submit(hub)
    job, fence = await claim(hub)
    for _ in range(2):
        await hub.finish(job, fence, {"path": "x"}, None)
    ended = [line for line in lines() if "has ended" in line["message"]]
    assert [(line["job"], line["attempt"]) for line in ended] == [(job, 1)]
    assert ended[0]["message"].endswith("succeeded")
