"""Checkpoints on their way to storage."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import pytest
import torch

from warpcache_ray.engine.checkpoint import Checkpoint
from warpcache_ray.serving.checkpoints import Checkpoints, Keeper


def _checkpoint(step: int) -> Checkpoint:
    return Checkpoint(step, 8, torch.full((2,), float(step)), {}, torch.zeros(1))


@pytest.fixture(params=["folder", "memory"])
def checkpoints(request: pytest.FixtureRequest, tmp_path: Path) -> Checkpoints:
    """A folder, and a kind of storage that isn't one."""
    return Checkpoints(
        str(tmp_path) if request.param == "folder" else f"memory://{tmp_path.name}", "m1"
    )


def test_the_newest_is_read(checkpoints: Checkpoints) -> None:
    """Of all attempts' the one with most steps; nothing once the job is forgotten, which may be said twice."""
    assert checkpoints.newest("job_1") is None
    for fence, step in ((1, 4), (2, 2)):
        checkpoints.write("job_1", fence, step, bytes([fence, step]))
    checkpoints.write("job_2", 1, 9, b"another job's")
    assert checkpoints.newest("job_1") == b"\x01\x04"
    checkpoints.write("job_1", 2, 10, b"\x02\x0a")
    assert checkpoints.newest("job_1") == b"\x02\x0a"
    for _ in range(2):
        checkpoints.forget("job_1")
        assert checkpoints.newest("job_1") is None
    assert checkpoints.newest("job_2") == b"another job's"


def test_another_models_are_none(checkpoints: Checkpoints) -> None:
    """A job that is taken up with other weights starts anew; forgetting it forgets both."""
    checkpoints.write("job_1", 1, 4, b"x")
    other = Checkpoints(checkpoints.url, "m2")
    assert other.newest("job_1") is None
    other.write("job_1", 2, 2, b"y")
    assert (checkpoints.newest("job_1"), other.newest("job_1")) == (b"x", b"y")
    other.forget("job_1")
    assert checkpoints.newest("job_1") is None


def test_an_attempt_keeps_one(tmp_path: Path) -> None:
    """Each takes the place of those before it; half a one is none."""
    checkpoints = Checkpoints(str(tmp_path), "m1")
    for step in (2, 4, 10):
        checkpoints.write("job_1", 3, step, b"x")
    (tmp_path / "job_1" / "3-12-m1.part").write_bytes(b"half")
    assert sorted(p.name for p in (tmp_path / "job_1").iterdir()) == ["3-10-m1.pt", "3-12-m1.part"]
    assert checkpoints.newest("job_1") == b"x"


def test_a_keeper_keeps_what_there_is_time_for(checkpoints: Checkpoints) -> None:
    """It tells the step of the newest and how many there were; whoever reads finds the state of that step."""
    keeper = Keeper(checkpoints, "job_1", 3)
    for step in (2, 4):
        keeper.offer(lambda step=step: _checkpoint(step))
        while keeper.kept != step:
            time.sleep(0.001)
    keeper.close()
    assert keeper.count == 2
    assert Checkpoint.from_bytes(checkpoints.newest("job_1") or b"").step == 4


def test_the_last_checkpoint_is_waited_for(checkpoints: Checkpoints) -> None:
    """It is kept when the call is back, also if another one was being written."""
    keeper = Keeper(checkpoints, "job_1", 3)
    keeper.offer(lambda: _checkpoint(2))
    keeper.keep(_checkpoint(3))
    assert keeper.kept == 3
    assert Checkpoint.from_bytes(checkpoints.newest("job_1") or b"").step == 3
    keeper.close()


def test_storage_that_fails_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The run goes on without; what was kept before still counts."""
    (tmp_path / "job_1").write_text("in the way")
    keeper = Keeper(Checkpoints(str(tmp_path), "m1"), "job_1", 1)
    with caplog.at_level(logging.WARNING):
        keeper.offer(lambda: _checkpoint(2))
        keeper.close()
    assert (keeper.kept, keeper.count) == (None, 0)
    assert "no checkpoint of job_1 at step 2" in caplog.text
