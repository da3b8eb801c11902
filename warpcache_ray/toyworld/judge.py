"""Judges a toy-world video by measurement, without a model: colours, outlines, paths, camera."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from warpcache_ray.toyworld.captions import (
    COLORS,
    KINDS,
    PANS,
    Color,
    Kind,
    Pan,
    Scene,
    Shape,
    unit_vector,
)
from warpcache_ray.toyworld.scene import BACKGROUND_GAIN, PALETTE, signed_distance

Array = NDArray[np.float64]
Labels = NDArray[np.int64]
Mask = NDArray[np.bool_]

_COLORS = np.array([PALETTE[c] for c in COLORS])
_TEXTURE = 0.5
"""The texture dims and brightens a background by up to about this share."""
_MIN_AREA_PX = 40.0
_MIN_STRAIGHT_FRAMES = 5
_MAX_BEND_PX = 0.5
_MAX_STILL_DRIFT_PX = 2.0
_MIN_MOVING_PX = 0.2
_MIN_PAN_PX = 0.4
_MIN_TEXTURE = 0.005
"""Gradient, as a share of the background's brightness per px, below which no motion can be seen."""


@dataclass(frozen=True, slots=True)
class ShapeVerdict:
    """What was seen of one shape, None where it was not found: velocity (x, y) and speed in px per
    frame before the first bounce, drift in px. `direction_right` is None for still shapes,
    `still_right` for moving ones. A shape in a wrong colour is still judged in all else."""

    color: Color | None
    kind: Kind | None
    velocity: tuple[float, float] | None
    speed: float | None
    drift: float | None
    color_right: bool
    kind_right: bool
    direction_right: bool | None
    still_right: bool | None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was seen of a scene: shapes in the caption's order; `pan` is None without a texture."""

    shapes: tuple[ShapeVerdict, ...]
    background: Color
    pan: Pan | None
    background_right: bool
    pan_right: bool


def judge(video: NDArray[np.floating], scene: Scene) -> Verdict:
    """Measures a video (frames, height, width, 3) in [0, 1] against the scene of its caption."""
    pixels = np.nan_to_num(np.asarray(video, dtype=np.float64))
    background = background_color(pixels)
    labels = segment(pixels, background)
    found = _main_colors(labels, background, len(scene.shapes))
    pan = _pan(pixels, labels < 0, background)
    shapes = tuple(
        _judge_shape(shape, color, pixels, labels, background)
        for shape, color in zip(scene.shapes, _assign(scene.shapes, found), strict=True)
    )
    return Verdict(shapes, background, pan, background == scene.background, pan == scene.pan)


def background_color(pixels: Array) -> Color:
    """The colour to whose dimmed range the most pixels are nearest."""
    distances = np.stack([_dimmed_distance(pixels, c) for c in _COLORS], -1)
    return COLORS[int(np.bincount(distances.argmin(-1).ravel(), minlength=len(COLORS)).argmax())]


def segment(pixels: Array, background: Color) -> Labels:
    """(frames, height, width) index of each pixel's nearest shape colour, -1 for background."""
    behind = _dimmed_distance(pixels, np.array(PALETTE[background]))
    distances = np.stack([behind] + [np.linalg.norm(pixels - c, axis=-1) for c in _COLORS], -1)
    labels: Labels = distances.argmin(-1) - 1
    return labels


def _dimmed_distance(pixels: Array, color: Array) -> Array:
    gain = pixels @ color / (color @ color)
    low, high = BACKGROUND_GAIN * (1 - _TEXTURE), BACKGROUND_GAIN * (1 + _TEXTURE)
    distance: Array = np.linalg.norm(pixels - gain.clip(low, high)[..., None] * color, axis=-1)
    return distance


def _main_colors(labels: Labels, background: Color, count: int) -> list[Color]:
    """The `count` colours with the most foreground, without those too small for a shape."""
    sizes = np.bincount(labels.ravel() + 1, minlength=len(COLORS) + 1)[1:] / len(labels)
    sizes[COLORS.index(background)] = 0
    order = np.argsort(-sizes)[:count]
    return [COLORS[i] for i in order if sizes[i] >= _MIN_AREA_PX]


def _assign(shapes: Sequence[Shape], found: list[Color]) -> list[Color | None]:
    """For each shape its own colour if seen, else one that no shape claims, else None."""
    spare = [c for c in found if all(s.color != c for s in shapes)]
    return [s.color if s.color in found else spare.pop(0) if spare else None for s in shapes]


def _judge_shape(
    shape: Shape, color: Color | None, pixels: Array, labels: Labels, background: Color
) -> ShapeVerdict:
    still, hit = shape.speed == "still", color == shape.color
    cover = None if color is None else _cover(pixels, labels, color, background)
    whole = np.zeros(0, np.int64) if cover is None else _whole_frames(cover)
    if cover is None or len(whole) < _MIN_STRAIGHT_FRAMES:
        lost = (None, False) if still else (False, None)
        return ShapeVerdict(color, None, None, None, None, hit, False, *lost)
    path = _centroids(cover[whole])
    kind = _kind(cover[whole], path)
    velocity = _first_velocity(whole.astype(np.float64), path)
    speed = math.hypot(*velocity)
    drift = float(np.linalg.norm(path - path[0], axis=1).max())
    along = float(np.dot(velocity, unit_vector(shape.direction)))
    heads = None if still else speed > _MIN_MOVING_PX and along > speed * math.cos(math.pi / 4)
    stays = drift < _MAX_STILL_DRIFT_PX if still else None
    right = kind == shape.kind
    return ShapeVerdict(color, kind, velocity, speed, drift, hit, right, heads, stays)


def _cover(pixels: Array, labels: Labels, color: Color, background: Color) -> Array | None:
    """(frames, height, width) share of each pixel under a shape, unmixed from the background."""
    mixing = np.linalg.pinv(np.stack([PALETTE[color], PALETTE[background]], 1))
    share = (pixels @ mixing[0]).clip(0, 1)
    near = np.stack([_body(frame) for frame in labels == COLORS.index(color)])
    return share * near if near.any() else None


def _body(mask: Mask) -> Mask:
    """The largest connected part of a frame's mask, widened to take in its soft edge."""
    parts, count = ndimage.label(ndimage.binary_opening(mask))
    if count == 0:
        return np.zeros_like(mask)
    largest = parts == 1 + int(np.bincount(parts.ravel())[1:].argmax())
    widened: Mask = ndimage.binary_dilation(largest, ndimage.generate_binary_structure(2, 2), 3)
    return widened


def _whole_frames(cover: Array) -> NDArray[np.int64]:
    """Indices of the frames in which the shape has about its usual area: seen, and not hidden."""
    areas = cover.sum((1, 2))
    usual = np.quantile(areas, 0.75)
    return np.flatnonzero((areas >= _MIN_AREA_PX) & (abs(areas - usual) < 0.2 * usual))


def _centroids(cover: Array) -> Array:
    """(frames, 2) centre of mass (x, y) in pixels, pixel centres at half-integers."""
    mass = cover.sum((1, 2))
    y, x = (np.arange(n) + 0.5 for n in cover.shape[1:])
    return np.stack([cover.sum(1) @ x / mass, cover.sum(2) @ y / mass], 1)


def _kind(cover: Array, path: Array) -> Kind:
    """The kind whose outline of the same area and place fits the cover best in the most frames."""
    radius = math.sqrt(float(np.median(cover.sum((1, 2)))) / math.pi)
    seen = _soften(cover)
    errors = np.stack([((seen - t) ** 2).sum((1, 2)) for t in _templates(cover, path, radius)])
    return KINDS[int(np.bincount(errors.argmin(0), minlength=len(KINDS)).argmax())]


def _templates(cover: Array, path: Array, radius: float) -> list[Array]:
    area, found = math.pi * radius**2, []
    for kind in KINDS:
        # Kinds differ a little in area and centre for one radius; one measurement corrects both.
        trial = _draw(kind, np.array([[32.0, 32.0]]), radius, (64, 64))
        offset = (_centroids(trial)[0] - 32.0) / radius
        fitted = radius * math.sqrt(area / float(trial.sum()))
        found.append(_soften(_draw(kind, path - offset * fitted, fitted, cover.shape[1:])))
    return found


def _draw(kind: Kind, centers: Array, radius: float, size: tuple[int, ...]) -> Array:
    y, x = (torch.arange(n, dtype=torch.float64) + 0.5 for n in size)
    dx = (x - torch.from_numpy(centers[:, :1]))[:, None].expand(-1, size[0], -1)
    dy = (y - torch.from_numpy(centers[:, 1:]))[:, :, None].expand(-1, -1, size[1])
    cover: Array = (0.5 - signed_distance(kind, dx, dy, radius)).clamp(0, 1).numpy()
    return cover


def _soften(frames: Array) -> Array:
    softened: Array = ndimage.gaussian_filter(frames, (0, 1, 1))
    return softened


def _first_velocity(time: Array, path: Array) -> tuple[float, float]:
    """Least-squares velocity (x, y) over the longest straight beginning of the path."""
    velocity = np.zeros(2)
    for end in range(_MIN_STRAIGHT_FRAMES, len(path) + 1):
        t = time[:end] - time[:end].mean()
        centred = path[:end] - path[:end].mean(0)
        slope = t @ centred / (t @ t)
        bend = math.sqrt(float(((centred - t[:, None] * slope) ** 2).sum(1).mean()))
        if end > _MIN_STRAIGHT_FRAMES and bend > _MAX_BEND_PX:
            break
        velocity = slope
    return float(velocity[0]), float(velocity[1])


def _pan(pixels: Array, visible: Mask, background: Color) -> Pan | None:
    """The camera's motion, against the background's: least squares on its texture's gradients."""
    color = np.array(PALETTE[background]) * BACKGROUND_GAIN
    brightness = pixels @ color / (color @ color)
    wide = ndimage.generate_binary_structure(3, 3)
    shown = visible & ~ndimage.binary_dilation(ndimage.binary_opening(~visible), wide, 2)
    weight = ndimage.gaussian_filter(shown.astype(np.float64), (0, 1.5, 1.5))
    smooth = ndimage.gaussian_filter(np.where(shown, brightness, 0), (0, 1.5, 1.5))
    smooth = smooth / np.maximum(weight, 1e-6)
    before, after = smooth[:-1], smooth[1:]
    inside = ndimage.binary_erosion(shown, np.ones((1, 3, 3)))
    both = inside[:-1] & inside[1:]
    dy, dx = np.gradient((before + after) / 2, axis=(1, 2))
    gradient = np.stack([dx[both], dy[both]], 1)
    if len(gradient) < 100 or gradient.std() < _MIN_TEXTURE:
        return None
    shift = np.linalg.lstsq(gradient, -(after - before)[both], rcond=None)[0]
    if np.linalg.norm(shift) < _MIN_PAN_PX:
        return "still"
    return max(PANS[1:], key=lambda pan: float(-shift @ unit_vector(pan)))
