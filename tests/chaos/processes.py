"""Processes of the service, as the system has them."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import psutil


def processes_of(name: str) -> list[psutil.Process]:
    """Those with this name in their command that descend from this process, for others may run on the machine; the one
    that was started last is the last."""
    ours = {process.pid for process in psutil.Process().children(recursive=True)}
    found = [
        process
        for process in psutil.process_iter(["cmdline", "create_time", "status"])
        if process.pid in ours
        and process.info["status"] != psutil.STATUS_ZOMBIE
        and name in " ".join(process.info["cmdline"] or [])
    ]
    return sorted(found, key=lambda process: process.info["create_time"])


def process_of(name: str) -> psutil.Process:
    """The last one of them."""
    return processes_of(name)[-1]


@contextmanager
def slowed(process: psutil.Process, share: float, period_s: float = 0.2) -> Iterator[None]:
    """Within it the process runs for this share of the time only."""
    over = threading.Event()

    def toggle() -> None:
        while not over.is_set():
            process.send_signal(signal.SIGSTOP)
            over.wait((1 - share) * period_s)
            process.send_signal(signal.SIGCONT)
            over.wait(share * period_s)

    toggling = threading.Thread(target=toggle)
    toggling.start()
    try:
        yield
    finally:
        over.set()
        toggling.join()
