"""How the store talks to a Redis server, and what it tells when that fails."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import EqualJitterBackoff
from redis.exceptions import ConnectionError, ResponseError, TimeoutError

from warpcache_ray.errors import InvalidConfig, Unavailable
from warpcache_ray.urls import shown

log = logging.getLogger(__name__)

CONNECTIONS = 16
"""More callers than these wait for each other."""
TIMEOUT_S = 5.0
RETRIES = 3
PAUSE_S, LONGEST_PAUSE_S = 0.05, 0.5
POLICY = "noeviction"
REFUSALS = {
    "command not allowed when used memory": "its memory is full",
    "against a read only replica": "it is a replica",
    "MISCONF": "it can't save to its disk",
    "NOREPLICAS": "it has too few replicas",
    "CLUSTERDOWN": "its cluster is down",
}
"""By what Redis says. Anywhere in an error, for a script's error wraps the one that it ran into."""


def connect(url: str) -> Redis:
    """A client of the server at a `redis://`, `rediss://` or `unix://` URL; it connects on first use.

    Commands are sent again when the connection breaks, so each one must have the same effect twice as once. One that
    has no answer in time isn't: there may be none for long, and others wait for their turn.

    Raises:
        InvalidConfig: not such a URL.
    """
    try:
        pool = BlockingConnectionPool.from_url(
            url,
            max_connections=CONNECTIONS,
            decode_responses=True,
            socket_timeout=TIMEOUT_S,
            socket_connect_timeout=TIMEOUT_S,
            retry=Retry(
                EqualJitterBackoff(LONGEST_PAUSE_S, PAUSE_S),
                RETRIES,
                supported_errors=(ConnectionError,),
            ),
        )
    except ValueError:
        # Without the cause, which quotes parts of the URL.
        message = f"store.url = {shown(url)!r}: must be a redis://, rediss:// or unix:// URL"
        raise InvalidConfig(message, "store.url") from None
    return Redis.from_pool(pool)


async def check(redis: Redis) -> None:
    """Makes sure that the server keeps what it is given.

    Raises:
        InvalidConfig: it may evict records.
        Unavailable: it can't be reached.
    """
    with answers():
        try:
            # Not CONFIG GET, which hosted servers forbid.
            memory = await redis.info("memory")
        except ResponseError as error:
            log.warning("whether the store's server evicts records is unknown: %s", error)
            return
    policy = memory["maxmemory_policy"]
    if policy != POLICY:
        raise InvalidConfig(
            f"store.url: the server's maxmemory-policy is {policy}, which drops records when memory is short; "
            f"the job store needs {POLICY}",
            "store.url",
        )


@contextmanager
def answers() -> Iterator[None]:
    """Within it, a server that can't serve now raises Unavailable."""
    try:
        yield
    except (ConnectionError, TimeoutError) as error:
        raise Unavailable(f"the job store can't be reached: {error}") from error
    except ResponseError as error:
        reason = next((why for says, why in REFUSALS.items() if says in str(error)), None)
        if reason is None:
            raise
        raise Unavailable(f"the job store takes no writes, {reason}: {error}") from error


class Answers:
    """`answers`, with an account of how often the server couldn't serve, and for how long."""

    def __init__(self) -> None:
        self.failures = 0
        self.back_at = 0.0
        """When (by the monotonic clock) the server served again after it couldn't; 0 where it always could."""
        self._away_s = 0.0
        self._away_since: float | None = None

    @property
    def away_s(self) -> float:
        """Seconds from calls that failed to the next one that didn't, or until now."""
        since = self._away_since
        return self._away_s + (0.0 if since is None else time.monotonic() - since)

    @property
    def away(self) -> bool:
        """The last call failed."""
        return self._away_since is not None

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Around one call."""
        try:
            with answers():
                yield
        except Unavailable:
            self.failures += 1
            self._away_since = self._away_since or time.monotonic()
            raise
        if self.away:
            self.back_at = time.monotonic()
        self._away_s, self._away_since = self.away_s, None
