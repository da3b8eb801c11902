"""Locust with our file, as a process."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

FILE = Path(__file__).parents[2] / "loadtest" / "locustfile.py"


def _locust(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "locust", "-f", str(FILE), "--headless", "--only-summary"]
    return subprocess.run(
        [*command, *options], capture_output=True, text=True, timeout=60, check=False
    )


def test_a_trace_against_the_service(service, tmp_path):
    """Arrivals come when the trace says so, though the jobs before have not ended; the run ends with the trace, all
    jobs are accounted for, and the stages are in Locust's own statistics."""
    trace, out = tmp_path / "trace.csv", tmp_path / "load.json"
    trace.write_text("t,steps\n" + "".join(f"{n * 0.1:.1f},25\n" for n in range(5)))
    run = _locust(
        "--host", service.url, "--trace", str(trace), "--json-out", str(out), "--warmup=1"
    )
    assert run.returncode == 0, run.stderr
    summary = json.loads(out.read_text())
    counted = summary["jobs"]
    assert counted["offered"] == counted["acknowledged"] == 5
    assert counted["succeeded"] + counted["cancelled"] == 5
    # One replica, half a second a job: who comes last has waited for the others.
    assert summary["stages"]["job_queue"]["p99"] > 1.0
    assert summary["slo_scale"] == 3.0
    assert summary["options"]["trace"] == str(trace)
    assert "job_run" in run.stderr + run.stdout
    assert sum(service.call(service.hub.health())["jobs"].values()) == 6


@pytest.mark.slow
def test_arrivals_over_the_cap_are_dropped_and_told(service, tmp_path):
    """They are neither sent later nor forgotten."""
    trace, out = tmp_path / "trace.csv", tmp_path / "load.json"
    trace.write_text("t,steps\n" + "0,20\n" * 4)
    _locust(
        "--host",
        service.url,
        "--trace",
        str(trace),
        "--json-out",
        str(out),
        "--most=1",
        "--warmup=0",
    )
    counted = json.loads(out.read_text())["jobs"]
    assert (counted["offered"], counted["dropped"], counted["acknowledged"]) == (4, 3, 1)


def test_bad_options_end_it_before_it_begins():
    """With the option and the value in the message."""
    run = _locust("--host", "http://127.0.0.1:9", "--rate=0")
    assert run.returncode != 0
    assert "rate = 0.0 is not allowed" in run.stderr
