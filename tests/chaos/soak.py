"""What the service's processes hold."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from statistics import median
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
            kind, megabytes = kind_of(process), process.memory_info().rss / MEGABYTE
            before = held[kind]
            held[kind] = Sizes(before.megabytes + megabytes, before.handles + process.num_fds())
    return dict(held)


def growth(samples: Sequence[dict[str, Sizes]]) -> dict[str, Sizes]:
    """By kind, from the second tenth of the time to the last; kinds that weren't there all the time are left
    out. There are two samples at least."""
    tenth = max(1, len(samples) // 10)
    first, last = samples[tenth : 2 * tenth], samples[-tenth:]
    kinds = set.intersection(*(set(sample) for sample in (*first, *last)))
    begun, ended = (_middles(part, kinds) for part in (first, last))
    return {
        kind: Sizes(
            ended[kind].megabytes - begun[kind].megabytes, ended[kind].handles - begun[kind].handles
        )
        for kind in sorted(kinds)
    }


def _middles(samples: Sequence[dict[str, Sizes]], kinds: set[str]) -> dict[str, Sizes]:
    columns = {kind: zip(*(sample[kind] for sample in samples), strict=True) for kind in kinds}
    return {kind: Sizes(*map(median, columns[kind])) for kind in kinds}
