from __future__ import annotations

import json
import re
from pathlib import Path

from warpcache_ray.serving.http_metrics import HTTP_TABLE
from warpcache_ray.serving.metrics import TABLE
from warpcache_ray.serving.rpc import STATUSES

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_ci_runs_the_readmes_test_command() -> None:
    """What a newcomer is told to run is what every submission must pass."""
    command = re.search(r"^python3 -m venv .*pytest$", README, re.MULTILINE)
    assert command
    assert command.group(0) in (ROOT / ".ci" / "run").read_text()


def test_links_lead_somewhere() -> None:
    """Every relative link and image of the README exists."""
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_every_metric_is_explained() -> None:
    """The README's table is the one that the service is made of, row for row."""
    listed = re.findall(r"^\| `warpcache_\w+.*$", README, re.MULTILINE)
    assert listed == [row.markdown for row in (*TABLE, *HTTP_TABLE)]


def test_scaling_is_told_as_it_was_simulated() -> None:
    """The README's table has the committed figures, row for row."""
    told = json.loads((ROOT / "loadtest" / "results" / "scaling.json").read_text())["traces"]
    for trace, runs in told.items():
        for policy, run in runs.items():
            name = "`TargetWait`" if policy == "TargetWait" else policy
            share = f"{100 * run['begun_in_time']:.1f} %"
            row = f"| {trace} | {name} | {share} | {run['wait_p95_s']:.0f} s | {run['replica_hours']:.1f} |"
            assert row in README, row


def test_statuses_of_grpc_are_those_that_are_told() -> None:
    """Each error's, in the row of its HTTP status; but for 405, which no call can have."""
    table = README.split("| status | errors |")[1].split("\n\n")[0].splitlines()
    for http, status in STATUSES.items():
        row = next((row for row in table if str(http) in row), None)
        assert row is None if http == 405 else f"`{status.name}`" in str(row), http


def test_overlays_are_those_that_are_there() -> None:
    """The README's table names each, and each command that applies one names one."""
    there = {path.name for path in (ROOT / "deploy" / "kuberay" / "overlays").iterdir()}
    assert set(re.findall(r"deploy/kuberay/overlays/([\w-]+)", README)) <= there
    for name in there:
        assert re.search(rf"^\| `{name}` \|", README, re.MULTILINE), name
