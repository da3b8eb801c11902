"""The replicas that a coordinator hears of."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Fleet:
    """Who spoke up lately, and what each can make."""

    _heard: dict[str, tuple[float, dict[str, Any]]] = field(default_factory=dict)

    def hear(self, replica: str, info: dict[str, Any]) -> None:
        """A replica has spoken."""
        self._heard[replica] = time.time(), info

    def live(self, within_s: float) -> dict[str, dict[str, Any]]:
        """What those can make that spoke in the last seconds; the others are forgotten."""
        since = time.time() - within_s
        self._heard = {name: told for name, told in self._heard.items() if told[0] > since}
        return {name: info for name, (_, info) in self._heard.items()}
