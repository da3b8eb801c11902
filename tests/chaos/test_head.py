"""The head of a cluster dies, with Ray's state and Serve's controller: the state is in Redis, the work elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from clients import SHORT, Clients
from head import clustered
from processes import process_of
from rows import Row

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1200)]


def test_head(note: Callable[[Row], None]) -> None:
    """Jobs go on without a head; once it is back, a rank that dies is replaced as ever."""
    with clustered() as cluster:
        live, clients = cluster.live, Clients(cluster.live.url)
        job = clients.mixed()
        live.until(job, lambda r: r["step"] > 5)
        controller = process_of("ray::ServeController")
        cluster.kill_head()
        began = time.monotonic()
        clients.insist(SHORT)
        taken = time.monotonic() - began
        # As soon as its successor is there, as whoever keeps it running (a kubelet, say) would see to.
        cluster.start_head()
        live.until_replaced("ray::ServeController", controller)
        found = time.monotonic() - began
        record = live.until(job, lambda r: r["finished_at"])
        assert (record["status"], record["fence"]) == ("succeeded", 1)
        again = clients.mixed()
        live.until(again, lambda r: r["checkpoint_step"])
        process_of("ray::Rank").kill()
        counted = clients.account()
        assert clients.record(again)["fence"] == 2
        latents = {clients.record(one)["result"]["latents_sha256"] for one in (job, again)}
    assert len(latents) == 1
    fault = (
        "Ray's head node, `kill -9` of all its processes (state in Redis), started again at once"
    )
    note(Row(fault, found, None, f"nothing; new ones are taken after {taken:.1f} s", counted))
