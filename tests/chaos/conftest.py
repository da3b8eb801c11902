"""One service for all faults, clients for each, and the table of what was found."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from clients import EXACT, Clients
from live import Live, served
from rows import Row, keep

CANCELS, MINUTES = 60, 2.0


def pytest_addoption(parser: pytest.Parser) -> None:
    """What a full run may be told."""
    parser.addoption("--table", type=Path, help="folder in which the table of faults is kept")
    parser.addoption("--cancels", type=int, default=CANCELS, help="how many in a row")
    parser.addoption("--minutes", type=float, default=MINUTES, help="length of the soak")


@pytest.fixture(scope="package")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """The service, started once for the tests of this folder."""
    with served(tmp_path_factory.mktemp("live") / "results") as service:
        yield service


@pytest.fixture
def cancels(request: pytest.FixtureRequest) -> int:
    """How many in a row."""
    return int(request.config.getoption("--cancels", CANCELS))


@pytest.fixture
def minutes(request: pytest.FixtureRequest) -> float:
    """Length of the soak."""
    return float(request.config.getoption("--minutes", MINUTES))


@pytest.fixture(scope="package")
def undisturbed(live: Live) -> str:
    """Digest of the latents that nothing happens to."""
    clients = Clients(live.url)
    job = clients.send(EXACT)
    clients.account()
    return str(clients.record(job)["result"]["latents_sha256"])


@pytest.fixture
def clients(live: Live) -> Clients:
    """Those who have jobs made; they find the service idle."""
    live.until_idle()
    return Clients(live.url)


@pytest.fixture
def note(request: pytest.FixtureRequest, record_property: Any) -> Callable[[Row], None]:
    """Sees that no job failed, was lost or published twice, and keeps the row for the table."""

    def noted(row: Row) -> None:
        for name, value in (("found", row.found_s), ("recovered", row.recovered_s)):
            record_property(name, value)
        counted = row.counted
        assert counted["acknowledged"] > 0
        bad = {name: counted[name] for name in ("failed", "lost", "unfinished", "twice")}
        assert not any(bad.values()), counted
        if folder := request.config.getoption("--table", None):
            part, test = request.path.stem.removeprefix("test_"), request.node.name
            keep(folder, f"{part}:{test.removeprefix('test_')}", row)

    return noted
