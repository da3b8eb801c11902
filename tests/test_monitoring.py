"""What `deploy/monitoring` asks of the metrics: names and labels that there are; its rules fire when they should."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from warpcache_ray.serving.http_metrics import HTTP_TABLE
from warpcache_ray.serving.metrics import PREFIX, TABLE

FOLDER = Path(__file__).parents[1] / "deploy" / "monitoring"
DASHBOARD = json.loads((FOLDER / "grafana.json").read_text())
RULES = yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"][0]["rules"]
TESTS = yaml.safe_load((FOLDER / "alerts.test.yml").read_text())["tests"]
SCRAPED = {"job", "instance"}
"""Labels that Prometheus adds."""


def panels() -> list[dict[str, Any]]:
    """Those that show something."""
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def samples() -> Iterator[tuple[str, set[str]]]:
    """Every name that /metrics has, and its labels."""
    for row in (*TABLE, *HTTP_TABLE):
        name, labels = PREFIX + row.name, {*row.labels}
        if row.kind == "histogram":
            yield f"{name}_bucket", labels | {"le"}
            yield from ((f"{name}_{of}", labels) for of in ("sum", "count"))
        else:
            yield name, labels


SAMPLES = dict(samples())
EXPRESSIONS = {
    **{rule["alert"]: rule["expr"] for rule in RULES},
    **{p["title"]: t["expr"] for p in panels() for t in p["targets"]},
}


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_expressions_use_what_there_is(name: str) -> None:
    """Each name is a row of the table, each label one of the metrics that the expression is about."""
    expression = EXPRESSIONS[name]
    metrics = set(re.findall(rf"\b{PREFIX}\w+", expression))
    assert metrics <= SAMPLES.keys()
    known = SCRAPED.union(*(SAMPLES[metric] for metric in metrics))
    selected = re.findall(r"(\w+)\s*(?:=|!=|=~|!~)\s*\"", expression)
    grouped = [
        label for by in re.findall(r"by \(([^)]*)\)", expression) for label in by.split(", ")
    ]
    assert {*selected, *grouped} <= known


def test_what_the_legends_say_is_there() -> None:
    """A series is named by labels that its expression keeps."""
    for panel in panels():
        for target in panel["targets"]:
            for label in re.findall(r"{{(\w+)}}", target["legendFormat"]):
                assert re.search(rf"by \([^)]*\b{label}\b", target["expr"]), panel["title"]


def test_panels_stand_beside_each_other() -> None:
    """Each has an id and a place of its own, within the 24 columns."""
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (place["x"] + i, place["y"] + j) for i in range(place["w"]) for j in range(place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_each_alert_is_seen_to_fire_and_not_to() -> None:
    """As the file for promtool has it."""
    seen = {
        (t["alertname"], bool(t["exp_alerts"])) for test in TESTS for t in test["alert_rule_test"]
    }
    assert seen >= {(rule["alert"], fires) for rule in RULES for fires in (True, False)}


def promtool(*arguments: object) -> None:
    """Runs it; the test fails with what it says."""
    tool = shutil.which("promtool")
    assert tool, "these tests need promtool: apt-get install prometheus"
    ended = subprocess.run([tool, *map(str, arguments)], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.mark.slow
def test_prometheus_takes_the_files() -> None:
    """The configuration and its rules; each alert fires on the series that it is for."""
    promtool("check", "config", FOLDER / "prometheus.yml")
    promtool("test", "rules", FOLDER / "alerts.test.yml")


@pytest.mark.slow
def test_prometheus_takes_what_the_dashboard_asks(tmp_path: Path) -> None:
    """Every expression is PromQL."""
    asked = [t["expr"].replace("$__rate_interval", "5m") for p in panels() for t in p["targets"]]
    rules = [
        {"record": f"panel:{index}", "expr": expression} for index, expression in enumerate(asked)
    ]
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": [{"name": "a", "rules": rules}]}))
    promtool("check", "rules", tmp_path / "rules.yml")
