"""Small charts as SVG text: axes, lines, bands, points, bars, heat maps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

Points = Sequence[tuple[float, float]]

WIDTH, HEIGHT = 680, 260
LEFT, RIGHT, TOP, BOTTOM = 76, 12, 12, 40
TICKS = 6


@dataclass(slots=True)
class Chart:
    """A plot of `x` (from, to) against `y` (from, to); what is drawn first lies below."""

    x: tuple[float, float]
    y: tuple[float, float]
    x_label: str
    y_label: str
    height: int = HEIGHT
    log_y: bool = False
    parts: list[str] = field(default_factory=list)

    def line(self, points: Points, style: str) -> None:
        """Joined points."""
        listed = " ".join(f"{self._x(x):.1f},{self._y(y):.1f}" for x, y in points)
        self.parts.append(f'<polyline class="{style}" points="{listed}"/>')

    def band(self, low: Points, high: Points) -> None:
        """What lies between two lines."""
        corners = [*high, *reversed(low)]
        listed = " ".join(f"{self._x(x):.1f},{self._y(y):.1f}" for x, y in corners)
        self.parts.append(f'<polygon class="band" points="{listed}"/>')

    def points(self, points: Points, style: str, titles: Sequence[str] = ()) -> None:
        """Dots, each with what it says when pointed at."""
        for i, (x, y) in enumerate(points):
            said = f"<title>{escape(titles[i])}</title>" if titles else ""
            at = f'cx="{self._x(x):.1f}" cy="{self._y(y):.1f}"'
            self.parts.append(f'<circle class="{style}" {at} r="4">{said}</circle>')

    def level(self, y: float, said: str) -> None:
        """A horizontal line with its name."""
        at = self._y(y)
        self.parts.append(
            f'<line class="level" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>'
            f'<text class="note" x="{WIDTH - RIGHT}" y="{at + 14:.1f}" text-anchor="end">{escape(said)}</text>'
        )

    def render(self) -> str:
        """The SVG element."""
        bottom = self.height - BOTTOM
        ticks = [*map(self._x_tick, _ticks(self.x)), *map(self._y_tick, self._y_ticks())]
        labels = (
            f'<text x="{(LEFT + WIDTH) / 2}" y="{self.height - 6}" class="label">{escape(self.x_label)}</text>'
            f'<text transform="translate(14 {bottom / 2}) rotate(-90)" class="label">{escape(self.y_label)}</text>'
        )
        frame = f'<path class="axis" d="M{LEFT} {TOP}V{bottom}H{WIDTH - RIGHT}"/>'
        return _svg(self.height, "".join((*ticks, *self.parts, frame, labels)))

    def _x(self, value: float) -> float:
        low, high = self.x
        return LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def _y(self, value: float) -> float:
        low, high = self.y
        if self.log_y:
            low, high, value = math.log10(low), math.log10(high), math.log10(max(value, low))
        share = min(1.0, max(0.0, (value - low) / (high - low)))
        return self.height - BOTTOM - share * (self.height - TOP - BOTTOM)

    def _y_ticks(self) -> list[float]:
        if not self.log_y:
            return _ticks(self.y)
        powers = range(math.ceil(math.log10(self.y[0])), math.floor(math.log10(self.y[1])) + 1)
        return [10.0**power for power in powers]

    def _x_tick(self, value: float) -> str:
        at, bottom = self._x(value), self.height - BOTTOM
        return f'<text class="tick" x="{at:.1f}" y="{bottom + 16}" text-anchor="middle">{value:g}</text>'

    def _y_tick(self, value: float) -> str:
        at = self._y(value)
        return (
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>'
            f'<text class="tick" x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{value:g}</text>'
        )


def heat_map(rows: Sequence[tuple[str, Sequence[float]]], titles: str) -> str:
    """One row of cells for each name, the darker the larger (0 is white, the largest of its row is darkest)."""
    cell, parts = 22, []
    for i, (name, values) in enumerate(rows):
        largest = max(values) or 1.0
        y, width = i * (cell + 4), (WIDTH - LEFT - RIGHT) / len(values)
        parts.append(
            f'<text class="tick" x="{LEFT - 6}" y="{y + 15}" text-anchor="end">{escape(name)}</text>'
        )
        for j, value in enumerate(values):
            at = f'x="{LEFT + j * width:.1f}" y="{y}" width="{width:.1f}" height="{cell}"'
            said = escape(f"step {j}: {titles} {value:.3g}")
            shade = f'fill-opacity="{math.sqrt(value / largest):.3f}"'
            parts.append(f'<rect class="cell" {at} {shade}><title>{said}</title></rect>')
    return _svg(len(rows) * (cell + 4), "".join(parts))


def _svg(height: int, content: str) -> str:
    size = f'viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{content}</svg>'


def _ticks(span: tuple[float, float]) -> list[float]:
    low, high = span
    raw = (high - low) / TICKS
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= raw)
    first = math.ceil(low / step)
    return [round(i * step, 10) for i in range(first, math.floor(high / step + 1e-9) + 1)]
