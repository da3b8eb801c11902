"""What is around those who make videos dies, is away for a while, or runs out of room: jobs at work hardly notice."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable

import live as service
import pytest
from clients import SHORT, Clients
from live import Live
from processes import process_of
from rows import Row

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(900)]

AWAY_S = 30.0


@pytest.mark.parametrize(
    ("fault", "name"),
    [
        ("coordinator, `kill -9`", "ray::Coordinator"),
        ("store (Redis, AOF), `kill -9`", "redis-server"),
        ("ingress, `kill -9`", f"ray::ServeReplica:{service.NAME}:Ingress"),
        ("Serve's HTTP proxy, `kill -9`", "ray::ProxyActor"),
        ("Serve's controller, `kill -9`", "ray::ServeController"),
    ],
    ids=["1-coordinator", "2-store", "3-ingress", "4-proxy", "5-controller"],
)
def test_process(
    live: Live,
    clients: Clients,
    undisturbed: str,
    note: Callable[[Row], None],
    fault: str,
    name: str,
) -> None:
    """Another takes its place; the job at work ends in its first attempt, and no other is lost."""
    job = clients.mixed()
    step = live.until(job, lambda r: r["step"] > 5)["step"]
    struck = process_of(name)
    struck.kill()
    began = time.monotonic()
    live.until_replaced(name, struck)
    found = time.monotonic() - began
    clients.insist(SHORT)
    live.until(job, lambda r: r["step"] > step)
    recovered = time.monotonic() - began
    counted, record = clients.account(), clients.record(job)
    assert (record["status"], record["fence"]) == ("succeeded", 1)
    assert record["result"]["latents_sha256"] == undisturbed
    note(Row(fault, found, recovered, "nothing", counted))


def test_store_away(
    live: Live, clients: Clients, undisturbed: str, note: Callable[[Row], None]
) -> None:
    """For half a minute the store doesn't answer: new jobs are refused with a code, the one at work goes on."""
    job = clients.mixed()
    live.until(job, lambda r: r["step"] > 5)
    store = process_of("redis-server")
    store.send_signal(signal.SIGSTOP)
    began = time.monotonic()
    assert live.until_refused(SHORT) == "unavailable"
    found = time.monotonic() - began
    time.sleep(max(0.0, AWAY_S - (time.monotonic() - began)))
    store.send_signal(signal.SIGCONT)
    back = time.monotonic()
    clients.insist(SHORT)
    recovered = time.monotonic() - back
    counted, record = clients.account(), clients.record(job)
    assert (record["status"], record["fence"]) == ("succeeded", 1)
    assert record["result"]["latents_sha256"] == undisturbed
    fault = "store unreachable for 30 s"
    note(Row(fault, found, recovered, "nothing; new ones get 503 `unavailable` meanwhile", counted))
