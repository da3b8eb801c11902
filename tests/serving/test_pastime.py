"""What an idle replica does, with its ranks and the coordinator played by the test."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hubs import CONFIG, INFO, SOON
from ray.exceptions import RayActorError, RayTaskError

from warpcache_ray.errors import InvalidPolicy, WorkerLost
from warpcache_ray.serving.pace import Pace
from warpcache_ray.serving.pastime import Pastime
from warpcache_ray.upkeep_config import AuditsConfig

QUALITY = {"psnr": 30.0, "ssim": 0.9}
STANDING = {"step": 1, "total": 4}


class Idle:
    """A replica that has one audit to make, whose outcome is `outcome`, or comes when it is called."""

    def __init__(self, folder: Path) -> None:
        self.config, self.id, self.info = CONFIG, "replica_1", INFO
        self.pace = Pace(20.0, 30.0, 600.0)
        self.failed: str | None = None
        self.served = folder / "1-latents.pt"
        self.served.write_bytes(b"latents")
        self.called = asyncio.Event()
        self.told: list[tuple[Any, ...]] = []
        self.runs: list[tuple[Any, ...]] = []
        self.outcome: Callable[[], Any] = lambda: (QUALITY, None)
        self.waits = False
        self.handed_back: list[str] = []
        self.ranks = [SimpleNamespace(hand_back=SimpleNamespace(remote=self.handed_back.append))]
        self.error: Exception | None = None
        self.tasks = 1

    async def tell(self, method: str, *arguments: Any) -> Any:
        """As the coordinator answers."""
        part, asked, replica, *rest = arguments
        assert (method, replica) == ("upkeep", self.id)
        if part == "calls":
            await self.called.wait()
            return True
        if self.error is not None:
            raise self.error
        self.told.append((asked, *rest))
        if asked != "next" or self.tasks == 0:
            return None
        self.tasks -= 1
        return {"job_id": "job_1", "request": {}, "image": None, "served": str(self.served)}

    async def together(self, method: str, task: dict[str, Any], *rest: Any) -> Any:
        """As the ranks do it."""
        self.runs.append((method, task["id"], *rest))
        while self.waits and task["id"] not in self.handed_back:
            await asyncio.sleep(0.001)
        return self.outcome()

    async def image(self, task: dict[str, Any]) -> bytes | None:
        """It has none."""
        assert task["image"] is None
        return None

    async def progress(self, task: dict[str, Any]) -> dict[str, Any]:
        """Of ranks that are well."""
        return STANDING

    def lose_ranks(self, lost: Exception) -> WorkerLost:
        """They are lost."""
        self.failed = repr(lost)
        return WorkerLost("a rank died")


@pytest.fixture
async def idle(tmp_path: Path) -> Idle:
    return Idle(tmp_path)


async def spend(pastime: Pastime) -> None:
    """A round of it."""
    await asyncio.wait_for(pastime.spend(), SOON)


async def test_an_audit_is_made_and_told(idle: Idle) -> None:
    """All ranks make it with what was served; then that is needed no more."""
    await spend(Pastime(idle))  # type: ignore[arg-type]
    assert idle.told == [("next",), ("found", "job_1", 30.0, 0.9), ("next",)]
    [(method, _, *rest)] = idle.runs
    assert (method, rest) == ("audit", [b"latents", None, None])
    assert not idle.served.exists()


async def test_a_call_ends_it_at_its_next_step(idle: Idle) -> None:
    """The ranks are told to hand that audit back, and the next round goes on from there under another name."""
    idle.waits, idle.outcome = True, lambda: ({"left_at": b"checkpoint"}, None)
    pastime = Pastime(idle)  # type: ignore[arg-type]
    idle.called.set()
    await spend(pastime)
    assert idle.told == [("next",), ("left", "job_1")]
    assert idle.served.exists()
    idle.waits, idle.outcome, idle.tasks = False, lambda: (QUALITY, None), 1
    await spend(pastime)
    first, second = idle.runs
    assert (first[3], second[3]) == (None, b"checkpoint")
    assert idle.handed_back[0] == first[1] != second[1]
    assert idle.told[2:4] == [("next",), ("found", "job_1", 30.0, 0.9)]


async def test_ranks_that_die_in_an_audit_tell_nothing(idle: Idle) -> None:
    """The replica ends with them, as in a job; the audit is another one's."""

    def dies() -> Any:
        raise RayActorError

    idle.outcome = dies
    await spend(Pastime(idle))  # type: ignore[arg-type]
    assert idle.failed is not None
    assert idle.told == [("next",)]
    assert idle.served.exists()


async def test_ranks_that_hang_in_an_audit_are_lost(
    idle: Idle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a job: no step for longer than any step may take."""
    idle.pace = Pace(20.0, 30.0, 0.0)
    idle.waits = True

    def lose(lost: Exception) -> WorkerLost:
        idle.failed = repr(lost)
        idle.waits = False
        return WorkerLost("a rank died")

    monkeypatch.setattr(idle, "lose_ranks", lose)
    await spend(Pastime(idle))  # type: ignore[arg-type]
    assert idle.failed is not None
    assert "none other in 0.0 s" in idle.failed


async def test_what_cannot_be_audited_is_told(idle: Idle) -> None:
    """Latents that are gone, and a model that fails."""
    error = {"code": "generation_failed", "message": "nan"}
    idle.outcome = lambda: ({}, error)
    await spend(Pastime(idle))  # type: ignore[arg-type]
    assert idle.told == [("next",), ("failed", "job_1", error), ("next",)]
    idle.served.unlink()
    idle.tasks = 1
    await spend(Pastime(idle))  # type: ignore[arg-type]
    assert idle.told[4][2]["code"] == "artifact_gone"
    assert len(idle.runs) == 1


async def test_jobs_go_on_whatever_comes_of_it(idle: Idle) -> None:
    """An error of the coordinator's audits doesn't end the replica's work."""
    idle.error = RayTaskError("upkeep", "", InvalidPolicy("broken", "policy"))
    await spend(Pastime(idle))  # type: ignore[arg-type]
    assert idle.told == []


async def test_without_audits_there_is_nothing_to_do(idle: Idle) -> None:
    """A share of 0: nobody is asked."""
    idle.config = replace(CONFIG, audits=AuditsConfig(share=0))
    await spend(Pastime(idle))  # type: ignore[arg-type]
    assert idle.told == []
