"""The disk with the videos, the checkpoints and the store is full."""

from __future__ import annotations

import errno
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import live as service
import pytest
from clients import SHORT, Clients
from live import Live
from rows import Row

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(900)]

FULL_S = 20.0


@pytest.fixture
def small_disk(live: Live, tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 MB, which holds all that the service keeps."""
    if os.geteuid():
        pytest.skip("only root may mount a file system")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(tmp_path)], check=True)
    service.deploy(tmp_path)
    yield tmp_path
    service.deploy(live.results)
    subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


def test_disk(live: Live, small_disk: Path, undisturbed: str, note: Callable[[Row], None]) -> None:
    """New jobs are refused with a code, those that were taken wait for room, in memory or on disk."""
    live.until_idle()
    clients = Clients(live.url)
    job = clients.mixed()
    live.until(job, lambda r: r["step"] > 5)
    filler = small_disk / "filler"
    fill(filler)
    began = time.monotonic()
    code = live.until_refused(SHORT)
    found = time.monotonic() - began
    time.sleep(max(0.0, FULL_S - found))
    filler.unlink()
    back = time.monotonic()
    clients.insist(SHORT)
    recovered = time.monotonic() - back
    counted, record = clients.account(), clients.record(job)
    assert (code, record["status"]) == ("unavailable", "succeeded")
    assert record["result"]["latents_sha256"] == undisturbed
    fault = f"disk full for {FULL_S:.0f} s (videos, checkpoints, store)"
    noticed = f"waits for room (attempt {record['fence']}); new ones get 503 `{code}` meanwhile"
    note(Row(fault, found, recovered, noticed, counted))


def fill(path: Path) -> None:
    """Takes all room that there is."""
    with path.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12):
            try:
                while True:
                    file.write(bytes(size))
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
