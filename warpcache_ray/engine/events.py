"""What goes into a generation and what comes out of it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image
from torch import Tensor

from warpcache_ray.engine.checkpoint import Checkpoint
from warpcache_ray.engine.stats import CacheStats, Record


@dataclass(frozen=True, slots=True)
class Control:
    """The word read at each step boundary: whether the run goes on, and the epoch in force (0 or more); a session of an
    older one forgets what it holds."""

    epoch: int = 0
    cancel: bool = False

    @property
    def word(self) -> int:
        """It as the one number that the first rank tells the others."""
        return -1 if self.cancel else self.epoch

    @staticmethod
    def read(word: int) -> Control:
        """What the number says."""
        return Control(cancel=True) if word < 0 else Control(word)


@dataclass(frozen=True, slots=True)
class Generation:
    """One video to make, in diffusers' field names; what is None is left to the pipeline's default."""

    prompt: str
    seed: int
    height: int | None = None
    width: int | None = None
    num_frames: int | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    negative_prompt: str | None = None
    image: Image | None = None
    """The first frame, in RGB, for models that take one; a pipeline stretches it to height and width."""
    lora: str | None = None
    lora_scale: float = 1.0
    fps: int | None = None
    """Frames per second, for models whose motion depends on it."""

    def pipeline_arguments(self) -> dict[str, Any]:
        """The fields that are set, of those that the pipeline takes."""
        names = [f for f in self.__slots__ if f not in ("seed", "lora", "lora_scale", "fps")]
        return {n: getattr(self, n) for n in names if getattr(self, n) is not None}


@dataclass(frozen=True, slots=True)
class StepEvent:
    """A step that has ended: its place, its seconds, its decisions (of each transformer's branches, at site `layer` of
    each block there), the account so far."""

    index: int
    total: int
    seconds: float
    decisions: tuple[Record, ...]
    stats: CacheStats
    checkpoint: Callable[[], Checkpoint] | None
    """What a later run needs to go on from here; to be called before the run does. None where there is more to it, or
    where a video is made in several runs, and this isn't the first."""


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds of each stage."""

    text: float
    denoise: float
    decode: float

    @property
    def total(self) -> float:
        """Their sum."""
        return self.text + self.denoise + self.decode


@dataclass(frozen=True, slots=True)
class Result:
    """A finished video: `frames` (T, H, W, 3) uint8 (none where another rank decodes), the final latents, and the
    account of its making."""

    frames: NDArray[np.uint8]
    latents: Tensor
    stats: CacheStats
    timings: Timings
    epoch: int = 0
    """The one in force when its last step was made."""
    resumed_at: int = 0
    """How many steps an earlier run had made."""
    tiled: bool = False
    """The decoder ran out of memory and worked tile by tile."""

    @property
    def latents_sha256(self) -> str:
        """Fingerprint of the final latents."""
        return latents_sha256(self.latents)


def latents_sha256(latents: Tensor) -> str:
    """Hex SHA-256 over the latents' bytes as contiguous little-endian float32."""
    data = latents.detach().float().cpu().contiguous().numpy().astype("<f4", copy=False)
    return hashlib.sha256(data.tobytes()).hexdigest()
