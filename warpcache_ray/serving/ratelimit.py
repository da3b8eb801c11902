"""How often a client may ask: moving windows, by the library `limits`; and how many requests it may keep open."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, Literal

from limits import RateLimitItem, parse
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter

from warpcache_ray.access_config import RateLimits
from warpcache_ray.errors import RateLimited

Kind = Literal["requests", "submissions"]
KINDS: tuple[Kind, ...] = ("requests", "submissions")

_parsed = cache(parse)


def _headers(kind: Kind) -> list[str]:
    return [f"x-ratelimit-{what}-{kind}" for what in ("limit", "remaining", "reset")]


HEADERS = [name for kind in KINDS for name in _headers(kind)]


class RateLimiter:
    """Counts in this process' memory: a new one starts from nothing. Clients are names in the configuration."""

    def __init__(self) -> None:
        self._windows = MovingWindowRateLimiter(MemoryStorage())

    def take(self, kind: Kind, client: str, rate: RateLimits) -> None:
        """Counts one more of a kind.

        Raises:
            RateLimited: that would be too many; it isn't counted.
        """
        limit = _limit(kind, rate)
        if limit is None or self._windows.hit(limit, kind, client):
            return
        free_at = self._windows.get_window_stats(limit, kind, client).reset_time
        raise RateLimited(
            f"{client!r} may send {limit.amount} {kind} in {limit.get_expiry()} s and has done so; try again later",
            retry_after_s=free_at - time.time(),
        )

    def headers(self, client: str, rate: RateLimits) -> dict[str, str]:
        """For each limit that holds for a client: how many it has, how many are left, and the seconds until the oldest
        of what was counted is counted no more; under the names by which OpenAI tells them."""
        told: dict[str, str] = {}
        for kind in KINDS:
            limit = _limit(kind, rate)
            if limit is not None:
                reset, left = self._windows.get_window_stats(limit, kind, client)
                wait_s = math.ceil(reset - time.time()) if left < limit.amount else 0
                told |= zip(
                    _headers(kind), (str(limit.amount), str(left), f"{wait_s}s"), strict=True
                )
        return told


class Streams:
    """Requests that stay open until something happens, by client: no more of one than its rate allows, and no more than
    `most` of all, so that there is room for those that are answered at once."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._open: Counter[str] = Counter()

    @contextmanager
    def one(self, client: str, rate: RateLimits) -> Iterator[None]:
        """One more, for as long as the block takes.

        Raises:
            RateLimited: the client, or all of them, have as many as they may.
        """
        if self._open[client] >= rate.streams:
            said = f"{client!r} may have {rate.streams} streams open and has so many"
            raise RateLimited(f"{said}; close one or try again later")
        if self._open.total() >= self._most:
            raise RateLimited(f"{self._most} streams are open, as many as may; try again later")
        self._open[client] += 1
        try:
            yield
        finally:
            self._close(client)

    def stay(self, client: str, call: asyncio.Future[Any]) -> None:
        """Counts on what a request leaves behind that was given up, until that is over."""
        self._open[client] += 1
        call.add_done_callback(lambda _: self._close(client))

    def _close(self, client: str) -> None:
        self._open[client] -= 1


def _limit(kind: Kind, rate: RateLimits) -> RateLimitItem | None:
    text = getattr(rate, kind)
    return _parsed(text) if text else None
