"""The replicas that a coordinator hears of."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

MEMORY_S = 3600.0
"""Names of replicas that were shut down longer ago than this are forgotten."""


@dataclass(slots=True)
class Fleet:
    """Who spoke up lately, and what each can make."""

    _heard: dict[str, tuple[float, dict[str, Any]]] = field(default_factory=dict)
    _retired: dict[str, float] = field(default_factory=dict)
    model: dict[str, Any] | None = None
    """What the last one that spoke can make; None: none has spoken yet."""

    def hear(self, replica: str, info: dict[str, Any]) -> None:
        """A replica has spoken."""
        if not self.retired(replica):
            self._heard[replica] = time.monotonic(), info
            self.model = info

    def retire(self, replica: str) -> None:
        """A replica takes no more jobs."""
        now = time.monotonic()
        self._retired = {name: at for name, at in self._retired.items() if now - at < MEMORY_S}
        self._retired[replica] = now
        self._heard.pop(replica, None)

    def retired(self, replica: str) -> bool:
        """Whether it takes no more jobs."""
        return replica in self._retired

    def live(self, within_s: float) -> dict[str, dict[str, Any]]:
        """What those can make that spoke in the last seconds; the others are forgotten."""
        since = time.monotonic() - within_s
        self._heard = {name: told for name, told in self._heard.items() if told[0] > since}
        return {name: info for name, (_, info) in self._heard.items()}

    def models(self, within_s: float, asleep: bool) -> list[dict[str, Any]]:
        """What live ones can make; where all may be asleep, what the last one could."""
        live = list(self.live(within_s).values())
        return live or ([self.model] if asleep and self.model is not None else [])
