"""The toy world's language: a caption grammar that writes and reads scene descriptions."""

from __future__ import annotations

import math
import random
import re
from dataclasses import dataclass
from typing import Literal, get_args

Kind = Literal["circle", "square", "triangle", "star"]
Color = Literal["red", "green", "blue", "yellow", "purple", "cyan", "orange", "white"]
Direction = Literal["up", "down", "left", "right", "up-left", "up-right", "down-left", "down-right"]
Speed = Literal["still", "slow", "medium", "fast"]
Pan = Literal["still", "up", "down", "left", "right"]

KINDS: tuple[Kind, ...] = get_args(Kind)
COLORS: tuple[Color, ...] = get_args(Color)
DIRECTIONS: tuple[Direction, ...] = get_args(Direction)
SPEEDS: tuple[Speed, ...] = get_args(Speed)
PANS: tuple[Pan, ...] = get_args(Pan)

_AXES = {"up": (0.0, -1.0), "down": (0.0, 1.0), "left": (-1.0, 0.0), "right": (1.0, 0.0)}


def unit_vector(direction: Direction | Pan) -> tuple[float, float]:
    """(x, y) of unit length on the screen, y downwards; (0, 0) for "still"."""
    if direction == "still":
        return 0.0, 0.0
    parts = [_AXES[word] for word in direction.split("-")]
    x, y = sum(p[0] for p in parts), sum(p[1] for p in parts)
    return x / math.hypot(x, y), y / math.hypot(x, y)


@dataclass(frozen=True, slots=True)
class Shape:
    """One moving shape; `direction` has no meaning while `speed` is "still"."""

    kind: Kind
    color: Color
    direction: Direction = "right"
    speed: Speed = "still"


@dataclass(frozen=True, slots=True)
class Scene:
    """What a caption says: one or two shapes, a background colour, a camera motion."""

    shapes: tuple[Shape, ...]
    background: Color
    pan: Pan = "still"


def sample_scene(rng: random.Random, shapes: int) -> Scene:
    """A random scene whose colours all differ."""
    background, *colors = rng.sample(COLORS, shapes + 1)
    return Scene(
        tuple(
            Shape(rng.choice(KINDS), color, rng.choice(DIRECTIONS), rng.choice(SPEEDS))
            for color in colors
        ),
        background,
        rng.choice(PANS) if rng.random() < 0.6 else "still",
    )


def canonical(scene: Scene) -> str:
    """The plain caption, e.g. "a red circle moving left fast over a blue background, camera panning up"."""
    shapes = " and ".join(
        f"a {s.color} {s.kind} "
        + ("staying still" if s.speed == "still" else f"moving {s.direction} {s.speed}")
        for s in scene.shapes
    )
    camera = "camera still" if scene.pan == "still" else f"camera panning {scene.pan}"
    return f"{shapes} over a {scene.background} background, {camera}"


_VERBS = ("moving", "moving", "drifting", "sliding", "gliding", "going", "flying")
_SPEED_WORDS = {
    "slow": ("slow", "slowly"),
    "medium": ("medium", "at medium speed", "steadily"),
    "fast": ("fast", "quickly", "rapidly"),
}
_STILL = ("staying still", "still", "standing still", "not moving", "resting")
_PANNING = ("camera panning {}", "camera panning {}", "the camera pans {}", "camera moving {}")
_FIXED = ("camera still", "static camera", "the camera is fixed", None)


def _vary_shape(shape: Shape, rng: random.Random) -> str:
    noun = f"a {shape.color} {shape.kind}"
    if shape.speed == "still":
        return f"{noun} {rng.choice(_STILL)}"
    way = shape.direction
    words = rng.choice((way, way, f"to the {way}")) if "-" not in way else _vary_diagonal(way, rng)
    speed, verb = rng.choice(_SPEED_WORDS[shape.speed]), rng.choice(_VERBS)
    if speed.startswith("at ") or rng.random() < 0.6:
        return f"{noun} {verb} {words} {speed}"
    return f"{noun} {verb} {speed} {words}"


def _vary_diagonal(way: str, rng: random.Random) -> str:
    vertical, horizontal = way.split("-")
    return rng.choice(
        (way, way, f"{vertical} and {horizontal}", f"diagonally {vertical} {horizontal}")
    )


def vary(scene: Scene, rng: random.Random) -> str:
    """A natural wording of the scene, drawn at random; `parse` reads it back."""
    if rng.random() < 0.4:
        return canonical(scene)
    shapes = " and ".join(_vary_shape(s, rng) for s in scene.shapes)
    place = rng.choice(("over a {} background", "on a {} background", "against a {} backdrop"))
    camera = rng.choice(_FIXED) if scene.pan == "still" else rng.choice(_PANNING).format(scene.pan)
    return f"{shapes} {place.format(scene.background)}" + (f", {camera}" if camera else "")


_SHAPE = re.compile(rf"\b({'|'.join(COLORS)})\s+({'|'.join(KINDS)})s?\b")
_BACKGROUND = re.compile(
    rf"\b(?:over|on|against|across)\s+(?:an?\s+|the\s+)?(?:textured\s+)?({'|'.join(COLORS)})\b(?!\s+(?:{'|'.join(KINDS)}))"
)
_BACKGROUND_NOUN = re.compile(
    rf"\b({'|'.join(COLORS)})\s+(?:textured\s+)?(?:background|backdrop)\b"
)
_CAMERA = re.compile(r"\b(?:camera|pan|pans|panning)\b[^,.;]*")
_SPEED_PATTERNS = {
    "still": r"still|static|rest\w*|not moving|motionless|stationary",
    "slow": r"slow\w*",
    "fast": r"fast|quick\w*|rapid\w*",
}


def _direction(text: str) -> Direction | None:
    vertical = re.search(r"\b(up|down)\w*\b", text)
    horizontal = re.search(r"\b(left|right)\w*\b", text)
    way = "-".join(m.group(1) for m in (vertical, horizontal) if m)
    return next((d for d in DIRECTIONS if d == way), None)


def _read_shape(match: re.Match[str], text: str) -> Shape:
    kind = next(k for k in KINDS if k == match.group(2))
    color = next(c for c in COLORS if c == match.group(1))
    direction = _direction(text)
    speed: Speed = "medium" if direction else "still"
    for name in ("still", "slow", "fast"):
        if re.search(rf"\b(?:{_SPEED_PATTERNS[name]})\b", text):
            speed = next(s for s in SPEEDS if s == name)
            break
    if direction is None:
        speed = "still"
    return Shape(kind, color, direction or "right", speed)


def parse(caption: str) -> Scene | None:
    """The scene that a caption describes, or None when it names no coloured shape or no background."""
    text = caption.lower()
    camera = _CAMERA.search(text)
    body = text.replace(camera.group(0), " ") if camera else text
    background = _BACKGROUND_NOUN.search(body) or _BACKGROUND.search(body)
    matches = list(_SHAPE.finditer(body))[:2]
    if background is None or not matches:
        return None
    ends = [m.start() for m in matches[1:]] + [len(body)]
    shapes = tuple(
        _read_shape(m, body[m.end() : max(m.end(), _before(background, m, end))])
        for m, end in zip(matches, ends, strict=True)
    )
    way = _direction(camera.group(0)) if camera else None
    pan: Pan = next((p for p in PANS if p == way), "still")
    color = next(c for c in COLORS if c == background.group(1))
    return Scene(shapes, color, pan)


def _before(background: re.Match[str], shape: re.Match[str], end: int) -> int:
    return min(end, background.start()) if background.start() > shape.start() else end
