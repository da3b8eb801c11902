"""Measurements on disk: append-only JSON lines, each with a key, so that an interrupted bench goes on."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Row = dict[str, Any]


class Rows:
    """The rows of a file, by key; of two rows with one key the later counts."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.by_key: dict[str, Row] = {}
        if path.exists():
            for line in path.read_text().splitlines():
                row = _parse(line)
                if row is not None:
                    self.by_key[row["key"]] = row

    def __contains__(self, key: str) -> bool:
        return key in self.by_key

    def add(self, row: Row) -> None:
        """Appends a row."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as out:
            out.write(json.dumps(row) + "\n")
        self.by_key[row["key"]] = row

    def forget(self, keys: Iterable[str]) -> None:
        """Drops rows, in memory only: they are to be measured again, and the new ones will count."""
        for key in keys:
            self.by_key.pop(key, None)


def _parse(line: str) -> Row | None:
    try:
        row: Row = json.loads(line)
    except json.JSONDecodeError:
        # The last line of a run that was killed while it wrote.
        return None
    return row
