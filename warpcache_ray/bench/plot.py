"""The Pareto plot: one line per method."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

from warpcache_ray.bench.fronts import Point, front
from warpcache_ray.bench.report import Score, by_method, points

LOW, HIGH = 20.0, 60.0
"""Qualities shown, in dB: below, nobody would use it; above, nobody sees it."""

_PANELS = {
    "calls": "calls (full guided evaluations)",
    "blocks": "block evaluations, in units of calls",
}
_MARKERS = "osD^v<>PX*"


def plot(scores: Sequence[Score], steps: int, title: str, out: Path) -> None:
    """Draws PSNR over calls and over block evaluations: each method's front as a line, all its points as marks.

    Ours are solid; methods that never leave the uncached result are left out.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(16, 7), sharey=True)
    colours = pyplot.get_cmap("tab10")
    shown = {m: own for m, own in by_method(scores).items() if not all(s.noop for s in own)}
    for index, (method, own) in enumerate(shown.items()):
        ours = own[0].kind == "policy"
        style = {
            "color": colours(index % colours.N),
            "marker": _MARKERS[index % len(_MARKERS)],
            "linestyle": "-" if ours else ("--", ":")[index // colours.N % 2],
            "linewidth": 2.4 if ours else 1.3,
        }
        for panel, name in zip(panels, _PANELS, strict=True):
            _draw(panel, _points(own, name, steps), method, style)
    for panel, label in zip(panels, _PANELS.values(), strict=True):
        panel.set(xscale="log", xlabel=label, ylim=(LOW, HIGH), xlim=(4, steps * 1.04))
        panel.set_xticks([], minor=True)
        ticks = [t for t in (5, 7, 10, 14, 20, 28, 40, 50) if t <= steps]
        panel.set_xticks(ticks, [str(t) for t in ticks])
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("PSNR against uncached, dB (mean over prompts)")
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=9)
    figure.suptitle(title)
    figure.tight_layout()
    figure.savefig(out, dpi=110, bbox_inches="tight")
    pyplot.close(figure)


def _points(scores: Sequence[Score], name: str, steps: int) -> list[Point]:
    found = points(scores, attrgetter(name))
    return [Point(p.cost * steps, p.psnr) for p in found] if name == "blocks" else found


def _draw(panel: Any, found: list[Point], method: str, style: dict[str, Any]) -> None:
    along = front(found)
    # Every point is there, those that others of the method beat pale and off the line.
    beaten = [p for p in found if p not in along]
    panel.scatter(
        [p.cost for p in beaten],
        [p.psnr for p in beaten],
        s=16,
        color=style["color"],
        marker=style["marker"],
        alpha=0.4,
    )
    panel.plot(
        [p.cost for p in along], [p.psnr for p in along], label=method, markersize=5, **style
    )
