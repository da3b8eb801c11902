"""What is said twice, or by one who has been replaced, or at another time than it is: it counts once, or not at all."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import live as service
import psutil
import pytest
from clients import EXACT, SHORT, Clients
from live import Live
from processes import processes_of
from rows import Row

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(900)]

COPIES = 20
HOUR_S = 3600.0


@pytest.mark.slow
def test_1_duplicates(live: Live, clients: Clients, note: Callable[[Row], None]) -> None:
    """The same request many times at once is one job, and its outcome counts once, however often it is told."""
    import ray

    def submit(_: int) -> str:
        answer = httpx.post(
            f"{live.url}/generate", json=SHORT, headers={"Idempotency-Key": "one"}, timeout=60
        )
        return str(answer.raise_for_status().json()["id"])

    before = made(live)
    with ThreadPoolExecutor(COPIES) as senders:
        (job,) = set(senders.map(submit, range(COPIES)))
    clients.follow(job, SHORT)
    result = live.until(job, lambda r: r["status"] == "succeeded")["result"]
    hub = service.coordinator()
    told = [hub.finish.remote(job, 1, {"path": "elsewhere"}, None) for _ in range(COPIES)]
    assert ray.get(told) == [True] * COPIES
    assert live.until(job, lambda r: True)["result"] == result
    assert made(live) == before + 1
    fault = f"a request sent {COPIES} times at once, its outcome told {COPIES} times more"
    note(Row(fault, None, None, "nothing: one job, one outcome", clients.account()))


def made(live: Live) -> int:
    """How many jobs there are."""
    return sum(live.until_told("/health", lambda said: True)["jobs"].values())


@pytest.fixture
def two_replicas(live: Live) -> Iterator[list[psutil.Process]]:
    """The drivers of two, each with two ranks."""
    try:
        deploy_replicas(live, 2)
        yield processes_of(service.REPLICA)
    finally:
        deploy_replicas(live, 1)


def deploy_replicas(live: Live, number: int) -> None:
    """That many, and none of those before them."""
    service.deploy(live.results, replicas=number)
    live.until_told("/health", lambda said: said["replicas"] == number)
    live.until_there(service.REPLICA, number)


def test_2_zombie(
    live: Live,
    clients: Clients,
    undisturbed: str,
    two_replicas: list[psutil.Process],
    note: Callable[[Row], None],
) -> None:
    """A replica stands still for longer than its lease while its ranks make the video; another one takes the job over.
    When it goes on, it has a whole video that nobody wants: it publishes nothing, and takes its file away."""
    job = clients.send(EXACT)
    live.until(job, lambda r: r["checkpoint_step"])
    with stopped(live, job, two_replicas) as began:
        live.until(job, lambda r: r["fence"] > 1 or r["status"] == "queued")
        found = time.monotonic() - began
        live.until(job, lambda r: r["fence"] > 1 and r["step"] > 0)
        recovered = time.monotonic() - began
        record = live.until(job, lambda r: r["status"] == "succeeded")
        mine = live.results / job
        deadline = time.monotonic() + 60
        while {path.name for path in mine.glob("*.mp4")} != {"1.mp4", "2.mp4"}:
            assert time.monotonic() < deadline, list(mine.iterdir())
            time.sleep(0.1)
    while (mine / "1.mp4").exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    now = live.until(job, lambda r: True)
    assert (now["fence"], now["result"], now["finished_at"]) == (
        2,
        record["result"],
        record["finished_at"],
    )
    assert now["result"]["latents_sha256"] == undisturbed
    fault = "replica stopped, its job taken over, then continued (a zombie with a whole video)"
    noticed = "goes on at its checkpoint on another replica; the zombie's video is refused"
    note(Row(fault, found, recovered, noticed, clients.account()))


@contextmanager
def stopped(live: Live, job: str, replicas: list[psutil.Process]) -> Iterator[float]:
    """Within it the replica that is at this job stands still; since when."""
    for replica in replicas:
        replica.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        # A report that was on its way may still come.
        time.sleep(0.5)
        step = live.until(job, lambda r: True)["step"]
        time.sleep(1.5)
        if live.until(job, lambda r: True)["step"] == step:
            break
        replica.send_signal(signal.SIGCONT)
    else:
        pytest.fail("no replica is at the job")
    try:
        yield began
    finally:
        replica.send_signal(signal.SIGCONT)


@pytest.mark.parametrize(
    "hours", [pytest.param(1, marks=pytest.mark.slow), -1], ids=["3-forward", "4-back"]
)
def test_clock(
    live: Live, clients: Clients, undisturbed: str, note: Callable[[Row], None], hours: int
) -> None:
    """The coordinator's clock is set by an hour in mid-job: the job's worker isn't taken for lost."""
    job = clients.mixed()
    step = live.until(job, lambda r: r["step"] > 5)["step"]
    service.set_clock(hours * HOUR_S)
    began = time.monotonic()
    try:
        clients.insist(SHORT)
        live.until(job, lambda r: r["step"] > step)
        recovered = time.monotonic() - began
        counted, record = clients.account(), clients.record(job)
    finally:
        service.set_clock(0.0)
    assert (record["status"], record["fence"]) == ("succeeded", 1)
    assert record["result"]["latents_sha256"] == undisturbed
    fault = f"coordinator's clock set {'forward' if hours > 0 else 'back'} by an hour"
    note(Row(fault, None, recovered, "nothing", counted))
