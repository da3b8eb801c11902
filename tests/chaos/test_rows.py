"""The table of faults is the one that was measured, wherever it is shown."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from rows import RESULTS, Row, keep, read, table

ROOT = Path(__file__).parents[2]
COUNTED = {"acknowledged": 4, "lost": 0, "unfinished": 0, "twice": 0}
ROW = Row("a rank, killed", 0.12, 13.4, "goes on", COUNTED)


def test_a_row_says_what_was_found() -> None:
    """Seconds to three digits at most, a dash where there is nothing; what isn't at its end counts as lost."""
    assert ROW.markdown == "| a rank, killed | 0.1 s | 13 s | goes on | 4 | 0 | 0 |"
    bad = replace(ROW, found_s=None, recovered_s=0.01, counted={**COUNTED, "unfinished": 1})
    assert bad.markdown == "| a rank, killed | – | at once | goes on | 4 | 1 | 0 |"


def test_a_row_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    """Faults may be run one by one, in any order: the table has the newest of each, in its own order."""
    keep(tmp_path, "processes:1", replace(ROW, fault="store"))
    keep(tmp_path, "workers:1", ROW)
    keep(tmp_path, "workers:1", replace(ROW, found_s=2.0))
    kept = read(tmp_path)
    assert [row.fault for row in kept.values()] == ["a rank, killed", "store"]
    assert kept["workers:1"].found_s == 2.0
    assert (tmp_path / "faults.md").read_text() == table(kept)


@pytest.mark.parametrize("shown", ["README.md", "tests/chaos/results/faults.md"])
def test_the_table_is_the_measured_one(shown: str) -> None:
    """Row for row, in the README as well; and no row tells of a lost job, or of one that was published twice."""
    rows = read(RESULTS)
    assert table(rows) in (ROOT / shown).read_text()
    for row in rows.values():
        assert row.counted["acknowledged"] > 0
        assert row.counted["lost"] + row.counted["unfinished"] + row.counted["twice"] == 0
