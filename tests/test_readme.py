from __future__ import annotations

import re
from pathlib import Path

from warpcache_ray.serving.http_metrics import HTTP_TABLE
from warpcache_ray.serving.metrics import TABLE

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
