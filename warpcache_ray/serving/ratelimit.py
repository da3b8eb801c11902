"""How often a client may ask: moving windows, by the library `limits`."""

from __future__ import annotations

import math
import time
from functools import cache
from typing import Literal

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
    """Counts in this process' memory: a new one starts from nothing."""

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


def _limit(kind: Kind, rate: RateLimits) -> RateLimitItem | None:
    text = getattr(rate, kind)
    return _parsed(text) if text else None
