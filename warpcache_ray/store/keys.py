"""The names of what an application has in Redis."""

from __future__ import annotations

from enum import StrEnum


class Place(StrEnum):
    """Which of the ordered sets a record is in."""

    QUEUED = "queued"
    RUNNING = "running"
    ENDED = "ended"


class Keys:
    """All keys of an application. The braces keep them in one slot of a cluster."""

    def __init__(self, application: str) -> None:
        root = f"{{warpcache:{application}}}"
        self.epoch, self.model_epoch = f"{root}:epoch", f"{root}:epoch:model"
        self.places = {place: f"{root}:{place}" for place in Place}
        self._root = root

    def job(self, id: str) -> str:
        """A job's record."""
        return f"{self._root}:job:{id}"

    def decisions(self, id: str) -> str:
        """What its attempts decided, by fence."""
        return f"{self._root}:decisions:{id}"

    def events(self, id: str) -> str:
        """What happened to the job."""
        return f"{self._root}:events:{id}"
