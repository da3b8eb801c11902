"""What the service's processes hold."""

from __future__ import annotations

from collections import defaultdict
from contextlib import suppress
from typing import NamedTuple

import psutil
from memory import MEGABYTE, kind_of


class Sizes(NamedTuple):
    """Of all processes of a kind."""

    megabytes: float = 0.0
    """Resident."""
    handles: float = 0.0
    """Open files and sockets."""


def sizes(raylet: psutil.Process) -> dict[str, Sizes]:
    """By kind: an actor's class, or a program's name."""
    held: dict[str, Sizes] = defaultdict(Sizes)
    for process in (raylet, *raylet.children(recursive=True)):
        # It may have ended meanwhile.
        with suppress(psutil.NoSuchProcess):
            megabytes = process.memory_info().rss / MEGABYTE
            before, kind = held[kind_of(process)], kind_of(process)
            held[kind] = Sizes(before.megabytes + megabytes, before.handles + process.num_fds())
    return dict(held)
