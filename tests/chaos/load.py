"""Locust's load (loadtest/), as a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

LOCUSTFILE = Path(__file__).parents[2] / "loadtest" / "locustfile.py"
SETTLED_S = 210.0


@contextmanager
def load(host: str, out: Path, options: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    """The load, from now on; the end of the block ends the arrivals and waits for the account in `out`."""
    command = [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--headless", "--host", host]
    with out.with_suffix(".log").open("w") as log:
        child = subprocess.Popen(
            [*command, *options, "--json-out", str(out), "--only-summary"],
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        try:
            yield child
            child.send_signal(signal.SIGTERM)
            child.wait(SETTLED_S)
        finally:
            child.kill()
            child.wait()
