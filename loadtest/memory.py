"""How much memory the service's processes hold, where they run on this machine."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from statistics import median

import psutil

MEGABYTE = 1e6
MINUTE_S = 60.0

Sample = tuple[float, dict[str, float]]
"""When, in seconds, and the resident megabytes of each kind of process."""


def raylet_of(port: int) -> psutil.Process | None:
    """The Ray node whose proxy listens on a port of this machine; all of the service's processes descend from it."""
    listening = (
        c.pid
        for c in psutil.net_connections("tcp")
        if c.status == psutil.CONN_LISTEN and c.laddr.port == port and c.pid
    )
    found = next(listening, None)
    return None if found is None else psutil.Process(found).parent()


def resident(raylet: psutil.Process) -> dict[str, float]:
    """Megabytes by kind: an actor's class, or a program's name."""
    held: dict[str, float] = defaultdict(float)
    for process in (raylet, *raylet.children(recursive=True)):
        # It may have ended meanwhile.
        with suppress(psutil.NoSuchProcess):
            held[kind_of(process)] += process.memory_info().rss / MEGABYTE
    return dict(held)


def growth(samples: Sequence[Sample]) -> dict[str, dict[str, float]]:
    """The median of each kind's first and last minute."""
    if not samples:
        return {}
    begin, end = samples[0][0], samples[-1][0]
    first = [held for at, held in samples if at <= begin + MINUTE_S]
    last = [held for at, held in samples if at >= end - MINUTE_S]
    kinds = sorted({kind for _, held in samples for kind in held})
    return {
        kind: {"first_minute_mb": _middle(first, kind), "last_minute_mb": _middle(last, kind)}
        for kind in kinds
    }


def _middle(samples: Sequence[dict[str, float]], kind: str) -> float:
    return round(median(held.get(kind, 0.0) for held in samples), 1)


def kind_of(process: psutil.Process) -> str:
    """An actor's class, or a program's name."""
    title = (process.cmdline() or [process.name()])[0]
    # A title is `ray::Class.method`, or `ray::ServeReplica:application:Deployment.method`.
    return title.partition(".")[0] if title.startswith("ray::") else process.name()
