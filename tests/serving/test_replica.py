"""What the replica does between its ranks and the coordinator, with both played by the test."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from hubs import CONFIG, INFO, SOON, BareReplica, totals
from ray.exceptions import RayActorError

from warpcache_ray.serving.lifecycle import Order
from warpcache_ray.serving.pace import Pace

ATTEMPT = {"id": "job_1#1", "job_id": "job_1", "fence": 1, "epoch": 0}
TOLD = totals(4) | {"summary": {}}
ATTEMPT |= {"request": {"height": 32, "width": 32, "num_frames": 9}}


def _remote(method: Any) -> SimpleNamespace:
    return SimpleNamespace(remote=method)


async def test_an_attempt_ends_while_its_progress_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank tells how far it is in the very moment in which the attempt ends: the outcome is published, and nothing
    goes on to report of it."""
    told, asked = [], asyncio.get_running_loop().create_future()
    ended: list[tuple[Any, ...]] = []

    async def generated(attempt: dict[str, Any]) -> tuple[dict[str, Any], None]:
        await asyncio.sleep(0.01)
        return {"bytes": 1}, None

    def progress(attempt: str) -> asyncio.Future[dict[str, Any]]:
        told.append(attempt)
        if len(told) == 1:
            return asked
        done = asyncio.get_running_loop().create_future()
        done.set_result(TOLD)
        return done

    async def listen(*_: Any) -> Order:
        if not asked.done():
            asked.set_result(TOLD)
        return Order()

    async def never(*_: Any) -> Order:
        await asyncio.sleep(60)
        return Order()

    async def finish(*outcome: Any) -> bool:
        ended.append(outcome)
        return True

    replica = BareReplica()
    replica.config, replica.id, replica.info, replica.failed = CONFIG, "replica_1", INFO, None
    replica.draining = False
    replica.pace = Pace(20.0, 30.0, 600.0)
    replica.ranks = [SimpleNamespace(progress=_remote(progress))]
    replica.coordinator = SimpleNamespace(
        report=_remote(listen), control=_remote(never), finish=_remote(finish)
    )
    monkeypatch.setattr(replica, "_generate", generated)
    await asyncio.wait_for(replica._run(ATTEMPT), SOON)
    assert ended == [("job_1", 1, {"bytes": 1}, None)]


async def test_a_rank_that_dies_is_why_the_other_fails() -> None:
    """The other one's lost connection is told first; the job fails by the death, after which it is tried again."""
    lost_connection = {"code": "generation_failed", "message": "Connection closed by peer"}

    async def dies(*_: Any) -> Any:
        await asyncio.sleep(0.02)
        raise RayActorError

    async def fails(*_: Any) -> Any:
        return {}, lost_connection

    replica = BareReplica()
    replica.draining = True
    for pair in ((dies, fails), (fails, dies)):
        replica.ranks = [SimpleNamespace(generate=_remote(each)) for each in pair]
        with pytest.raises(RayActorError):
            await replica.together("generate", ATTEMPT)
