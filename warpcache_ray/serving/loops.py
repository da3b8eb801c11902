"""What a process does again and again for as long as it lives, whatever one round of it comes to."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from warpcache_ray.errors import Superseded, Unavailable

log = logging.getLogger(__name__)


class Loop:
    """Rounds without end. Each begins with its pause, so that one that fails isn't followed by the next at once."""

    def __init__(self, name: str, round: Callable[[], Awaitable[None]]) -> None:
        self._name = name
        self._round = round
        self._task: asyncio.Task[None] | None = None

    def keep_up(self) -> None:
        """Begins it, or begins it anew where it was ended from outside."""
        if self._task is not None and not self._task.done():
            return
        if self._task is not None:
            log.error("the %s was ended; it begins anew", self._name)
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        # Asked of the task, for a round may lose its cancellation among errors of its own.
        while not task.cancelling():
            try:
                await self._round()
            except Superseded as error:
                log.warning("the %s ends: %s", self._name, error.message)
                return
            except Unavailable as error:
                log.warning("the %s goes on without the store: %s", self._name, error.message)
            except Exception:
                log.exception("a round of the %s failed; the next one follows", self._name)
