"""The table of faults: its rows as JSON, and as the README shows them."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
PARTS = ("workers", "processes", "head", "storage", "delivery", "long")
"""The table's order: that of the modules which have its tests, and within each that of their names."""
HEAD = "| struck in mid-job | found in | recovered in | what its job notices | jobs | lost | published twice |"


@dataclass(frozen=True, slots=True)
class Row:
    """What became of one fault. Seconds are counted from the fault to when the service (or who starts its processes
    anew) acts on it, and to when the struck job makes steps again and new jobs are taken; None where there is nothing
    to find, or to recover from."""

    fault: str
    found_s: float | None
    recovered_s: float | None
    noticed: str
    counted: Mapping[str, int]

    @property
    def markdown(self) -> str:
        """The row of the table."""
        jobs, lost = self.counted["acknowledged"], self.counted["lost"] + self.counted["unfinished"]
        seconds = (_seconds(self.found_s), _seconds(self.recovered_s))
        cells = (self.fault, *seconds, self.noticed, jobs, lost, self.counted["twice"])
        return f"| {' | '.join(map(str, cells))} |"


def table(rows: Mapping[str, Row]) -> str:
    """All rows, under their head."""
    return "\n".join([HEAD, "|---" * 7 + "|", *(row.markdown for row in rows.values())]) + "\n"


def read(folder: Path = RESULTS) -> dict[str, Row]:
    """The rows that were kept there, by part and name of their test, in the order of the table."""
    path = folder / "faults.json"
    known = json.loads(path.read_text())["rows"] if path.exists() else {}
    fields = Row.__dataclass_fields__
    return {
        name: Row(**{field: known[name][field] for field in fields})
        for name in sorted(known, key=_place)
    }


def keep(folder: Path, name: str, row: Row) -> None:
    """Keeps a row under its name, in place of the one that was there."""
    path = folder / "faults.json"
    known = json.loads(path.read_text())["rows"] if path.exists() else {}
    measured = {
        "at": time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
        "load_average": round(os.getloadavg()[0], 1),
    }
    known[name] = asdict(row) | measured
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"rows": known}, indent=2) + "\n")
    (folder / "faults.md").write_text(table(read(folder)))


def _place(name: str) -> tuple[int, str]:
    part, _, test = name.partition(":")
    return PARTS.index(part), test


def _seconds(value: float | None) -> str:
    if value is None:
        return "–"
    return "at once" if value < 0.05 else f"{value:.1f} s" if value < 10 else f"{value:.0f} s"
