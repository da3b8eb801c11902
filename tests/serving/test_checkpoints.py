"""Checkpoints on their way to storage."""

from __future__ import annotations

import logging
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
    return Checkpoints(str(tmp_path) if request.param == "folder" else f"memory://{tmp_path.name}")


def test_what_is_written_is_read(checkpoints: Checkpoints) -> None:
    """By its place; gone once the job is forgotten, which may be said twice."""
    places = [checkpoints.write("job_1", 1, step, bytes([step])) for step in (2, 4)]
    assert places[0].endswith("job_1/1-2.pt")
    assert [checkpoints.read(place) for place in places] == [b"\x02", b"\x04"]
    checkpoints.delete(places[0])
    with pytest.raises(OSError, match="1-2"):
        checkpoints.read(places[0])
    checkpoints.forget("job_1")
    checkpoints.forget("job_1")
    with pytest.raises(OSError, match="1-4"):
        checkpoints.read(places[1])


def test_a_keeper_keeps_the_newest(checkpoints: Checkpoints) -> None:
    """Each in its turn takes the place of the one before."""
    keeper = Keeper(checkpoints, "job_1", 3)
    for step in (2, 4):
        keeper.offer(lambda step=step: _checkpoint(step))
        while not keeper.kept or keeper.kept["step"] != step:
            pass
    keeper.close()
    assert keeper.kept is not None
    assert Checkpoint.from_bytes(checkpoints.read(keeper.kept["url"])).step == 4
    with pytest.raises(OSError, match="3-2"):
        checkpoints.read(keeper.kept["url"].replace("3-4", "3-2"))


def test_storage_that_fails_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The run goes on without; what was kept before still counts."""
    (tmp_path / "job_1").write_text("in the way")
    keeper = Keeper(Checkpoints(str(tmp_path)), "job_1", 1)
    with caplog.at_level(logging.WARNING):
        keeper.offer(lambda: _checkpoint(2))
        keeper.close()
    assert keeper.kept is None
    assert "no checkpoint of job_1 at step 2" in caplog.text
