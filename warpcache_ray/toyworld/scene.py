"""Renders toy-world scenes: anti-aliased shapes that bounce over a panning, softly textured background."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import torch
from torch import Tensor

from warpcache_ray.toyworld.captions import Color, Kind, Pan, Scene, Speed, unit_vector

SIZE = 64
FRAMES = 17

PALETTE: dict[Color, tuple[float, float, float]] = {
    "red": (0.88, 0.14, 0.14),
    "green": (0.13, 0.72, 0.25),
    "blue": (0.18, 0.33, 0.93),
    "yellow": (0.97, 0.88, 0.16),
    "purple": (0.60, 0.22, 0.82),
    "cyan": (0.16, 0.84, 0.88),
    "orange": (0.98, 0.54, 0.08),
    "white": (0.97, 0.97, 0.97),
}
SPEED_PX: dict[Speed, float] = {"still": 0.0, "slow": 0.6, "medium": 1.3, "fast": 2.4}
PAN_PX = 1.2
BACKGROUND_GAIN = 0.5
"""A background is its palette colour at half brightness, so shapes stand out."""

_AREA_RADIUS: dict[Kind, float] = {"circle": 1.0, "square": 0.886, "triangle": 1.42, "star": 1.5}
_STAR_INNER = 0.46
_MIN_FRAMES_BEFORE_BOUNCE = 6


@dataclass(frozen=True, slots=True)
class Layout:
    """What a caption leaves open: per shape radius and start (x, y) in pixels; per texture wave a wave vector
    (radians per pixel), phase and amplitude."""

    radii: tuple[float, ...]
    starts: tuple[tuple[float, float], ...]
    waves: tuple[tuple[float, float, float, float], ...]


def sample_layout(scene: Scene, rng: random.Random) -> Layout:
    """Random sizes, places and texture; the first bounce comes late enough to see the direction."""
    base = 10.5 if len(scene.shapes) == 1 else 8.5
    radii, starts = [], []
    for shape in scene.shapes:
        radius = base * rng.uniform(0.9, 1.12)
        velocity = [c * SPEED_PX[shape.speed] for c in unit_vector(shape.direction)]
        lo, hi = radius, SIZE - radius
        start = []
        for v in velocity:
            run = v * _MIN_FRAMES_BEFORE_BOUNCE
            start.append(rng.uniform(lo - min(run, 0.0), hi - max(run, 0.0)))
        radii.append(radius)
        starts.append((start[0], start[1]))
    return Layout(tuple(radii), tuple(starts), tuple(_sample_wave(rng, i) for i in range(3)))


def _sample_wave(rng: random.Random, index: int) -> tuple[float, float, float, float]:
    wavelength = rng.uniform(18.0, 30.0)
    angle = (index + rng.uniform(0.1, 0.9)) * math.pi / 3
    k = 2 * math.pi / wavelength
    return (
        k * math.cos(angle),
        k * math.sin(angle),
        rng.uniform(0, 2 * math.pi),
        rng.uniform(0.7, 1.0),
    )


def reflect(position: Tensor, low: float, high: float) -> Tensor:
    """Folds straight motion into the interval [low, high], as a ball bounces between two walls."""
    span = high - low
    return low + span - (torch.remainder(position - low, 2 * span) - span).abs()


def trajectory(scene: Scene, layout: Layout, index: int, frames: int = FRAMES) -> Tensor:
    """(frames, 2) centre (x, y) of one shape in pixels."""
    shape, radius = scene.shapes[index], layout.radii[index]
    time = torch.arange(frames, dtype=torch.float32)
    velocity = torch.tensor(unit_vector(shape.direction)) * SPEED_PX[shape.speed]
    straight = torch.tensor(layout.starts[index]) + time[:, None] * velocity
    return reflect(straight, radius, SIZE - radius)


def signed_distance(kind: Kind, x: Tensor, y: Tensor, radius: float) -> Tensor:
    """Distance in pixels to the outline, negative inside; all kinds have about the area of a circle of `radius`."""
    r = radius * _AREA_RADIUS[kind]
    if kind == "circle":
        return torch.hypot(x, y) - r
    if kind == "square":
        return torch.maximum(x.abs(), y.abs()) - r
    if kind == "triangle":
        y = y - 0.12 * r
        slope = x.abs() * math.cos(math.pi / 6) - y * 0.5
        return torch.maximum(slope, y) - 0.5 * r
    sector = 2 * math.pi / 5
    angle = torch.remainder(torch.atan2(x, -y) + sector / 2, sector) - sector / 2
    distance = torch.hypot(x, y)
    px, py = distance * angle.abs().sin(), distance * angle.cos()
    inner = _STAR_INNER * r
    ix, iy = inner * math.sin(sector / 2), inner * math.cos(sector / 2)
    ex, ey = ix, iy - r
    return ((px * -ey) + (py - r) * ex) / math.hypot(ex, ey)


def _background(color: Color, pan: Pan, layout: Layout, frames: int) -> Tensor:
    time = torch.arange(frames, dtype=torch.float32)[:, None, None]
    px, py = (c * PAN_PX for c in unit_vector(pan))
    grid = torch.arange(SIZE, dtype=torch.float32) + 0.5
    y, x = grid[None, :, None] + py * time, grid[None, None, :] + px * time
    texture = torch.zeros(frames, SIZE, SIZE)
    for kx, ky, phase, amplitude in layout.waves:
        texture = texture + amplitude * torch.sin(kx * x + ky * y + phase)
    base = torch.tensor(PALETTE[color]) * BACKGROUND_GAIN
    return base * (1.0 + 0.16 * texture[..., None])


def render(scene: Scene, layout: Layout, frames: int = FRAMES) -> Tensor:
    """(frames, SIZE, SIZE, 3) float32 in [0, 1]. A camera pan moves the background against it; shapes move on
    the screen, so that a caption's direction is what one sees."""
    video = _background(scene.background, scene.pan, layout, frames)
    grid = torch.arange(SIZE, dtype=torch.float32) + 0.5
    for i, shape in enumerate(scene.shapes):
        center = trajectory(scene, layout, i, frames)
        x = grid[None, None, :] - center[:, 0, None, None]
        y = grid[None, :, None] - center[:, 1, None, None]
        cover = (0.5 - signed_distance(shape.kind, x, y, layout.radii[i])).clamp(0, 1)[..., None]
        video = video * (1 - cover) + torch.tensor(PALETTE[shape.color]) * cover
    return video.clamp(0, 1)
