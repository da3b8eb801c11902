"""Who makes videos dies, hangs, is slow, or comes back late: its job is made all the same, once."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable

import live as service
import psutil
import pytest
from clients import SHORT, Clients
from live import Live
from processes import process_of, slowed
from rows import Row

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(900)]


@pytest.mark.parametrize(
    ("fault", "victim", "index", "sent"),
    [
        pytest.param(
            "first rank of two, `kill -9`", "rank", 0, signal.SIGKILL, marks=pytest.mark.slow
        ),
        ("second rank of two, `kill -9`", "rank", 1, signal.SIGKILL),
        ("first rank of two, stopped (`SIGSTOP`)", "rank", 0, signal.SIGSTOP),
        pytest.param(
            "second rank of two, stopped", "rank", 1, signal.SIGSTOP, marks=pytest.mark.slow
        ),
        ("replica (the driver of its ranks), `kill -9`", "replica", 0, signal.SIGKILL),
    ],
    ids=["1-rank-1-killed", "2-rank-2-killed", "3-rank-1-hung", "4-rank-2-hung", "5-replica"],
)
def test_worker(
    live: Live,
    clients: Clients,
    undisturbed: str,
    note: Callable[[Row], None],
    fault: str,
    victim: str,
    index: int,
    sent: int,
) -> None:
    """Both ranks are replaced, and the job goes on at its last checkpoint, to the bytes of an undisturbed run."""
    ranks = service.ranks()
    struck = ranks[index] if victim == "rank" else process_of(service.REPLICA)
    job = clients.mixed()
    live.until(job, lambda r: r["checkpoint_step"])
    struck.send_signal(sent)
    row = followed(live, clients, job, fault)
    assert clients.record(job)["result"]["latents_sha256"] == undisturbed
    assert not psutil.wait_procs(ranks, timeout=20)[1]
    note(row)


def followed(live: Live, clients: Clients, job: str, fault: str) -> Row:
    """What becomes of a job whose worker was struck just now."""
    began = time.monotonic()
    live.until(job, lambda r: r["fence"] > 1 or r["status"] == "queued")
    found = time.monotonic() - began
    live.until(job, lambda r: r["fence"] > 1 and r["step"] > 0)
    recovered = time.monotonic() - began
    clients.insist(SHORT)
    counted, record = clients.account(), clients.record(job)
    assert (record["status"], record["fence"]) == ("succeeded", 2)
    resumed = record["result"]["resumed_at"]
    assert resumed >= 10
    return Row(fault, found, recovered, f"goes on at step {resumed} of 100, same bytes", counted)


def test_6_slow_rank(
    live: Live, clients: Clients, undisturbed: str, note: Callable[[Row], None]
) -> None:
    """A rank that has a fifth of its time for a while makes its job later, and is left alone."""
    ranks = service.ranks()
    job = clients.mixed()
    live.until(job, lambda r: r["step"] > 0)
    with slowed(ranks[1], share=0.2):
        step, began = live.until(job, lambda r: r["step"] > 5)["step"], time.monotonic()
        later = live.until(job, lambda r: r["step"] > step + 20 or r["finished_at"])["step"]
        pace = (time.monotonic() - began) / (later - step)
    counted = clients.account()
    record = clients.record(job)
    assert (record["status"], record["fence"]) == ("succeeded", 1)
    assert record["result"]["latents_sha256"] == undisturbed
    assert service.ranks() == ranks
    fault = "second rank slow for 20 steps (it runs a fifth of the time)"
    note(Row(fault, None, None, f"is late: {pace:.2f} s a step; nobody is replaced", counted))
