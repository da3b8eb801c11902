"""What goes through a block: the video's tokens, and beside them those of text, audio or earlier frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from warpcache_ray.core.types import Grid
from warpcache_ray.models.adapter import BlockList
from warpcache_ray.models.seam import parameters_of

Beside = tuple[Tensor | None, ...]


@dataclass(frozen=True, slots=True)
class Stream:
    """The stream at one place of the stack: `video` (batch, tokens, channels), and what goes beside it."""

    video: Tensor
    beside: Beside = ()

    def since(self, start: Stream) -> Beside:
        """The change of what goes beside the video; None of what came or went."""
        pairs = zip(self.beside, start.beside, strict=True)
        return tuple(None if n is None or b is None else n - b for n, b in pairs)

    def fits(self, changes: Beside) -> bool:
        """These changes, of an earlier call, are of tokens as many as there are now."""
        pairs = zip(self.beside, changes, strict=True)
        return all(b is None or c is None or b.shape == c.shape for b, c in pairs)

    def moved(self, residual: Tensor, changes: Sequence[Tensor | None]) -> Stream:
        """Where blocks with this residual would have left the stream."""
        pairs = zip(self.beside, changes, strict=True)
        beside = (b if b is None or c is None else b + c for b, c in pairs)
        return Stream(self.video + residual, tuple(beside))


class Form:
    """How the blocks of a list are given the stream, and how they give it back."""

    def __init__(self, blocks: BlockList, block: nn.Module, grid: Grid) -> None:
        self.names = parameters_of(type(block).forward)
        self.returns = blocks.returns
        self.main = blocks.returns.index(blocks.video)
        self.video_tokens = grid.tokens if blocks.prefixed else None

    def given(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What the block would give back if it changed nothing."""
        arguments = dict(zip(self.names, args, strict=False)) | kwargs
        tensors = tuple(arguments[name] for name in self.returns)
        return tensors if len(tensors) > 1 else tensors[0]

    def read(self, given: Any) -> Stream:
        """The stream in what a block gives."""
        tensors = list(given) if isinstance(given, tuple) else [given]
        video, rest = tensors.pop(self.main), tensors
        if self.video_tokens is None:
            return Stream(video, tuple(rest))
        before = video.shape[1] - self.video_tokens
        return Stream(video[:, before:], (video[:, :before], *rest))

    def write(self, stream: Stream) -> Any:
        """The stream as a block gives it."""
        video, rest = stream.video, list(stream.beside)
        if self.video_tokens is not None:
            before = rest.pop(0)
            assert before is not None
            video = torch.cat((before, video), 1)
        tensors = (*rest[: self.main], video, *rest[self.main :])
        return tensors if len(tensors) > 1 else tensors[0]
