"""The policies that were last seen active in the store, as files on the local disk."""

from __future__ import annotations

import logging
from pathlib import Path

from warpcache_ray.errors import InvalidPolicy
from warpcache_ray.policy_document import PolicyDocument
from warpcache_ray.policy_slots import read_published
from warpcache_ray.policy_spec import load_document, save_policy

log = logging.getLogger(__name__)


class LastKnown:
    """One file a slot, `default-0123456789abcdef.v3.json`: a document like any other, so that it can be used as one.
    The methods block; a disk that fails costs no more than the files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.found: dict[str, tuple[int, PolicyDocument]] = {}
        """Version and document of each slot."""

    def load(self) -> None:
        """Reads what is there; what can't be read is left where it is."""
        for path in sorted(self.folder.glob("*.v*.json")):
            slot, version, _ = path.name.split(".")
            try:
                document = load_document(path)
                read_published(slot, document.to_dict())
                self.found[slot] = int(version.removeprefix("v")), document
            except (InvalidPolicy, ValueError) as error:
                log.warning("a last known policy can't be read: %s", error)

    def keep(self, slot: str, version: int, document: PolicyDocument) -> None:
        """Has this one in the place of the one before."""
        before = self.found.get(slot)
        self.found[slot] = version, document
        if before == (version, document):
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            save_policy(document, self.folder / f"{slot}.v{version}.json")
            self._remove(slot, but=version)
        except OSError as error:
            log.warning("the policy of %s isn't kept on disk: %s", slot, error)

    def forget(self, slot: str) -> None:
        """Nothing is to serve the slot."""
        if self.found.pop(slot, None) is None:
            return
        try:
            self._remove(slot)
        except OSError as error:
            log.warning("the policy of %s stays on disk: %s", slot, error)

    def _remove(self, slot: str, but: int | None = None) -> None:
        for path in self.folder.glob(f"{slot}.v*.json"):
            if path.name != f"{slot}.v{but}.json":
                path.unlink()
