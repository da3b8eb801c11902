"""Which ended jobs are forgotten, as a plain function of their records."""

from __future__ import annotations

import heapq
from collections import defaultdict, deque
from collections.abc import Iterable

from warpcache_ray.serving.lifecycle import Job


def forgettable(ended: Iterable[Job], since: float, most: int) -> list[Job]:
    """Those that ended before `since`, and of the others so many that `most` are left: always the oldest one of the
    client that has most, so that nobody's jobs go because of another's that come and go.

    Takes O(n log n) for n jobs.
    """
    in_time: dict[str, deque[Job]] = defaultdict(deque)
    old: list[Job] = []
    for job in sorted(ended, key=_end):
        if _end(job) < since:
            old.append(job)
        else:
            in_time[job.client].append(job)
    surplus = sum(map(len, in_time.values())) - most
    clients = [(-len(jobs), _end(jobs[0]), client) for client, jobs in in_time.items()]
    heapq.heapify(clients)
    for _ in range(surplus):
        _, _, client = clients[0]
        jobs = in_time[client]
        old.append(jobs.popleft())
        # The last one of all is never taken: `most` is one at least.
        heapq.heapreplace(clients, (-len(jobs), _end(jobs[0]) if jobs else 0.0, client))
    return old


def _end(job: Job) -> float:
    return job.finished_at or 0.0
