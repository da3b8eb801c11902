"""What was measured is kept, one file a thing, so that an evaluation that was cut short goes on where it was."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Measured = dict[str, Any]


class Kept:
    """Measurements in a folder, by what they rest on."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder

    def get(self, basis: Mapping[str, Any], measure: Callable[[], Measured]) -> Measured:
        """What was measured on this basis (JSON's types), now or before."""
        text = json.dumps(basis, sort_keys=True).encode()
        file = self.folder / f"{hashlib.sha256(text).hexdigest()[:24]}.json"
        if not file.exists():
            # Written aside first: a file that exists is whole.
            draft = file.with_suffix(".draft")
            draft.write_text(json.dumps(measure()))
            draft.replace(file)
        found: Measured = json.loads(file.read_text())
        return found


def file_digest(*files: Path) -> str:
    """SHA-256 of files' contents, one after the other."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()
