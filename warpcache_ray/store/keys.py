"""The names of what an application has in Redis."""

from __future__ import annotations

from enum import StrEnum


class Place(StrEnum):
    """Which of the ordered sets a record is in."""

    QUEUED = "queued"
    RUNNING = "running"
    ENDED = "ended"


APPLICATIONS = "{warpcache:*}:*"
"""All keys of all applications."""


def application_of(key: str) -> str:
    """Whose key it is."""
    return key.removeprefix("{warpcache:").partition("}")[0]


class Keys:
    """All keys of an application. The braces keep them in one slot of a cluster."""

    def __init__(self, application: str) -> None:
        root = f"{{warpcache:{application}}}"
        self.epoch, self.model_epoch = f"{root}:epoch", f"{root}:epoch:model"
        self.generation = f"{root}:generation"
        """How many coordinators there have been."""
        self.places = {place: f"{root}:{place}" for place in Place}
        self.policies, self.policy_changes = f"{root}:policies", f"{root}:policy-changes"
        """The set of all policies' keys, and the channel that tells which of them has changed."""
        self.served = f"{root}:served"
        """The models that the application serves at present, as policies name them."""
        self.tallies, self.audit_events = f"{root}:audits", f"{root}:audit-events"
        """The set of all versions' names that were audited, and what came of it."""
        self.profiles = f"{root}:profiles"
        """What the service profiles by itself."""
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

    def policy(self, key: str) -> str:
        """A policy's versions, and which of them are in force."""
        return f"{self._root}:policy:{key}"

    def policy_before(self, key: str) -> str:
        """The versions that were in force before, the last one first."""
        return f"{self._root}:policy-before:{key}"

    def policy_history(self, key: str) -> str:
        """Who changed what is in force, and why."""
        return f"{self._root}:policy-history:{key}"

    def tally(self, key: str, version: int) -> str:
        """What the audits of a policy's version have counted."""
        return f"{self._root}:audit:{key}:{version}"
