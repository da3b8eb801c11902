"""What an evaluation found, as JSON and as a Markdown table: values, settings, versions, and what is missing."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from warpcache_ray import __version__
from warpcache_ray.evaluation.pairs import MEASURES
from warpcache_ray.evaluation.protocols import Protocol

_PACKAGES = ("torch", "diffusers", "transformers", "numpy", "scikit-image", "av")


@dataclass(frozen=True, slots=True)
class Report:
    """`values` has what was measured over all videos, `videos` of each, `missing` what wasn't and what it takes."""

    protocol: str
    source: str
    settings: Mapping[str, Any]
    values: Mapping[str, Any]
    scores: Mapping[str, float | None]
    missing: Mapping[str, str]
    videos: Mapping[str, Mapping[str, Any]]
    versions: Mapping[str, str] = field(default_factory=lambda: versions())

    def write(self, out: Path) -> str:
        """As files with the endings .json and .md; the table."""
        out.parent.mkdir(parents=True, exist_ok=True)
        out.with_suffix(".json").write_text(json.dumps(asdict(self), indent=1) + "\n")
        table = self.markdown()
        out.with_suffix(".md").write_text(table)
        return table

    def markdown(self) -> str:
        """The values, the scores, what is missing, what it rests on."""
        lines = [f"{self.protocol}: {self.source}. {len(self.videos)} videos.", ""]
        lines += _pairs(self.values) if self.protocol == "pairs" else _dimensions(self.values)
        if self.scores:
            known = ((n, "–" if s is None else f"{100 * s:.2f}") for n, s in self.scores.items())
            lines += ["", *_table(["score", "of 100"], known)]
        if self.missing:
            lines += ["", *_table(["missing", "what it takes"], self.missing.items())]
        rests = {**self.settings, **self.versions}
        lines += ["", "; ".join(f"{name} {value}" for name, value in rests.items())]
        return "\n".join(lines) + "\n"


def versions() -> dict[str, str]:
    """Of what the measures are computed with."""
    found = {package: version(package) for package in _PACKAGES}
    found = {"warpcache-ray": __version__, **found}
    return {**found, "python": platform.python_version(), "machine": platform.machine()}


def missing_of(
    protocol: Protocol, values: Mapping[str, float], absent: Sequence[str]
) -> dict[str, str]:
    """The dimensions without a value, and the videos that should be there, with what would bring them."""
    found = {
        name: f"{dimension.needs or 'a video that the protocol looks at'}, or its value by `--scores`"
        for name, dimension in protocol.dimensions.items()
        if name not in values
    }
    if absent:
        found["videos"] = (
            f"{len(absent)} of the protocol's, such as {absent[0]!r}: `--model` makes them"
        )
    return found


def _pairs(values: Mapping[str, Any]) -> list[str]:
    measured = (
        (MEASURES[n].title, f"{v['mean']:.4f}", f"{v['worst']:.4f}")
        for n, v in values.items()
        if n in MEASURES
    )
    rest = ((name, f"{value:.4f}", "") for name, value in values.items() if name not in MEASURES)
    return _table(["measure", "mean", "worst"], (*measured, *rest))


def _dimensions(values: Mapping[str, Any]) -> list[str]:
    return _table(["dimension", "value"], ((n, f"{v:.4f}") for n, v in values.items()))


def _table(head: Sequence[str], rows: Any) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(str(cell).replace('|', '/') for cell in line)} |" for line in lines]
