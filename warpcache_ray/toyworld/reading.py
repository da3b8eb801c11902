"""Teaches the text encoder to read: which colour, motion and kind belongs to what in a caption.

Left to the denoising loss alone, so small an encoder stays a bag of words for thousands of steps: the videos have the
caption's colours, but as often as not the shape has the background's. Asking it for the scene takes a minute.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from warpcache_ray.toyworld.captions import COLORS, DIRECTIONS, KINDS, PANS, SPEEDS, Scene, Shape

_SHAPE_SLOTS = (len(COLORS) + 1, len(KINDS) + 1, len(DIRECTIONS) + 2, len(SPEEDS) + 1)
SLOTS = (len(COLORS), len(PANS), *_SHAPE_SLOTS, *_SHAPE_SLOTS)
"""Number of answers to each question: background, pan, then colour, kind, direction and speed of both shapes."""


def answers(scene: Scene) -> list[int]:
    """The right answer to each question of `SLOTS`; the last ones of a shape say that there is none."""
    second = _shape_answers(scene.shapes[1]) if len(scene.shapes) > 1 else _no_shape()
    place = [COLORS.index(scene.background), PANS.index(scene.pan)]
    return [*place, *_shape_answers(scene.shapes[0]), *second]


def _shape_answers(shape: Shape) -> list[int]:
    still = shape.speed == "still"
    direction = len(DIRECTIONS) if still else DIRECTIONS.index(shape.direction)
    return [
        COLORS.index(shape.color),
        KINDS.index(shape.kind),
        direction,
        SPEEDS.index(shape.speed),
    ]


def _no_shape() -> list[int]:
    return [slots - 1 for slots in _SHAPE_SLOTS]


def code(right: Tensor) -> Tensor:
    """(N, 71) of zeros and ones: the answers `right` (N, questions), one after the other, a place for each."""
    places = [F.one_hot(right[:, i], slots) for i, slots in enumerate(SLOTS)]
    return torch.cat(places, 1).float()


class Reader(nn.Module):
    """One learnt query per question attends over the encoder's states, as the transformer's cross-attention will."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(len(SLOTS), width) * 0.1)
        self.heads = nn.ModuleList(nn.Linear(width, answers) for answers in SLOTS)

    def loss(self, states: Tensor, mask: Tensor, right: Tensor) -> tuple[Tensor, float]:
        """Mean cross-entropy of the answers `right` (N, questions) read from `states` (N, tokens, width), and the
        share of captions of which all were right."""
        weights = (states @ self.queries.T).transpose(1, 2)
        weights = weights.masked_fill(~mask.bool()[:, None], -torch.inf).softmax(-1)
        pooled = (weights @ states).unbind(1)
        logits = [head(p) for head, p in zip(self.heads, pooled, strict=True)]
        losses = [F.cross_entropy(x, right[:, i]) for i, x in enumerate(logits)]
        read = torch.stack([x.argmax(-1) for x in logits], 1)
        return torch.stack(losses).mean(), (read == right).all(1).float().mean().item()
