"""What shows in the long run only: the service is as large afterwards as before, and has as much room."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clients import COUNTED, EXACT, SHORT, Clients
from live import Live, ranks
from load import load
from memory import raylet_of
from rows import Row
from soak import growth, sizes

pytestmark = [pytest.mark.chaos]

GROWTH_MB, GROWTH_HANDLES = 32.0, 64
RATE = 0.1
SAMPLE_S = 10.0


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_1_cancels(live: Live, clients: Clients, note: Callable[[Row], None], cancels: int) -> None:
    """Many in a row: each ends within a few steps, and the same two processes make the next video."""
    before, waits, held = ranks(), [], []
    for _ in range(cancels):
        job = clients.insist(EXACT)
        live.until(job, lambda r: r["step"] >= 1)
        asked = time.time()
        clients.cancel(job)
        record = live.until(job, lambda r: r["finished_at"] is not None)
        assert record["status"] == "cancelled"
        waits.append(record["finished_at"] - asked)
        held.append(sum(process.memory_info().rss for process in before) / 1e6)
    live.until(clients.insist(SHORT), lambda r: r["status"] == "succeeded")
    assert ranks() == before
    growth = max(held[-20:]) - max(held[20:40])
    assert growth < GROWTH_MB
    median, last = np.percentile(waits, [50, 99]) * 1e3
    told = f"ends after {median:.0f} ms (99 %: {last:.0f} ms); ranks grew by {growth:.0f} MB"
    note(Row(f"{cancels} cancels in a row", None, None, told, clients.account()))


@pytest.mark.timeout(24 * 3600)
def test_2_soak(live: Live, note: Callable[[Row], None], tmp_path: Path, minutes: float) -> None:
    """Mixed load, with cancels: memory and file handles of each kind of process stay."""
    live.until_idle()
    raylet = raylet_of(int(live.url.rsplit(":", 1)[-1]))
    assert raylet is not None
    out, samples = tmp_path / "load.json", []
    options = [f"--rate={RATE}", "--steps=10,20,50", "--cancel-share=0.2", "--warmup=1"]
    with load(live.url, out, options):
        until = time.monotonic() + 60 * minutes
        while time.monotonic() < until:
            samples.append(sizes(raylet))
            time.sleep(SAMPLE_S)
    live.until_idle()
    told: dict[str, Any] = json.loads(out.read_text())
    grown = growth(samples)
    most = max(grown, key=lambda kind: grown[kind].megabytes)
    handles = max(held.handles for held in grown.values())
    fault = f"{minutes:.0f} minutes of mixed load ({RATE} jobs a second)"
    noticed = (
        f"nothing; what grew most: {most}, by {grown[most].megabytes:.0f} MB; "
        f"file handles of any kind of process: {handles:+.0f} at most"
    )
    counted = {name: told["jobs"][name] for name in COUNTED}
    assert grown[most].megabytes < GROWTH_MB
    assert handles < GROWTH_HANDLES
    note(Row(fault, None, None, noticed, counted))
