"""A roll-out in chunks, each beginning with the last frame of the one before, and what one chunk tells of the next."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from warpcache_ray.core.types import Grid
from warpcache_ray.core.warp import estimate_flow, move
from warpcache_ray.toyworld.captions import Scene, canonical
from warpcache_ray.toyworld.folder import LATENT_CHANNELS
from warpcache_ray.toyworld.folder_i2v import FRAMES_PER_LATENT, condition
from warpcache_ray.toyworld.scene import FRAMES, SIZE
from warpcache_ray.tuning.record import Recording, record, run

REACH = 5
"""Largest shift, in latent pixels, that the best one is looked for among: 16 frames of fast motion are 4.8."""
FLOW_SCALE = 0.5


@dataclass(frozen=True, slots=True)
class Chunk:
    """One uncached part of a roll-out: its pipeline call, latents (n + 1, 32, 5, 8, 8) before each step and after the
    last, guided outputs (n, 32, 5, 8, 8), noise levels (n + 1), and frames (17, 64, 64, 3) in [0, 1]."""

    call: dict[str, Any]
    latents: Tensor
    outputs: Tensor
    sigmas: tuple[float, ...]
    frames: NDArray[np.float32]

    def content(self, step: int) -> Tensor:
        """The clean latent (32, 5, 8, 8) that the model sees behind the noise at a step."""
        return self.latents[step] - self.sigmas[step] * self.outputs[step]


def call_for(scene: Scene, image: NDArray[np.float32], seed: int, steps: int) -> dict[str, Any]:
    """Arguments of the pipeline for a chunk that begins with `image` (rows, columns, 3) in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    shape = (1, LATENT_CHANNELS, (FRAMES - 1) // FRAMES_PER_LATENT + 1, SIZE // 8, SIZE // 8)
    return {
        "image": torch.from_numpy(image).permute(2, 0, 1)[None],
        "prompt": canonical(scene),
        "height": SIZE,
        "width": SIZE,
        "num_frames": FRAMES,
        "num_inference_steps": steps,
        "guidance_scale": 4.0,
        "latents": torch.randn(shape, generator=generator),
        "output_type": "np",
    }


def generate(pipe: Any, call: dict[str, Any]) -> NDArray[np.float32]:
    """Frames (17, 64, 64, 3) in [0, 1]."""
    return np.asarray(run(pipe, call)[0], np.float32)


def roll_out(
    pipe: Any, scene: Scene, image: NDArray[np.float32], seed: int, steps: int, chunks: int
) -> Iterator[Chunk]:
    """The chunks in turn, uncached. All have the same noise, so that what they share can be seen."""
    for _ in range(chunks):
        call = call_for(scene, image, seed, steps)
        chunk = _chunk(call, record(pipe, call))
        yield chunk
        image = chunk.frames[-1]


def _chunk(call: dict[str, Any], recording: Recording) -> Chunk:
    course = recording.course
    assert course is not None
    assert course.guidance is not None
    cond, uncond = (torch.cat(recording.outputs[b]) for b in ("cond", "uncond"))
    outputs = uncond + course.guidance * (cond - uncond)
    moves = torch.tensor([b - a for a, b in pairwise(course.sigmas)]).view(-1, 1, 1, 1, 1)
    path = torch.cat([call["latents"], moves * outputs]).cumsum(0)
    return Chunk(call, path, outputs, course.sigmas, np.asarray(recording.result[0], np.float32))


def forecasts(before: Chunk, chunk: Chunk, flow: Tensor) -> dict[str, list[float]]:
    """Error of what a chunk's content at each step is foretold to be, as a share of the content's norm, by source.

    `previous chunk`: its content at the same step; `…, warped`: moved along `flow` (1, 2, 8, 8); `…, best shift`:
    moved, frame by frame, by the shift that fits best. `n steps before`: the chunk's own content then.
    """
    errors: dict[str, list[float]] = {}
    for step in range(len(chunk.outputs)):
        truth, source = chunk.content(step), before.content(step)
        told = {
            "previous chunk": source,
            "previous chunk, warped": _moved(source, flow),
            "previous chunk, best shift": _best_shift(source, truth),
        }
        told |= {f"{n} steps before": chunk.content(step - n) for n in (1, 4, 8) if step >= n}
        for name, guess in told.items():
            errors.setdefault(name, [math.nan] * step)
            errors[name].append(float((guess - truth).norm() / truth.norm()))
    return errors


def begun_from(before: Chunk, chunk: Chunk, step: int, flow: Tensor | None) -> Tensor:
    """The latent (1, 32, 5, 8, 8) at `step`, if the previous chunk's content there stood behind this one's noise."""
    content = before.content(step)
    if flow is not None:
        content = _moved(content, flow)
    sigma = chunk.sigmas[step]
    return ((1 - sigma) * content + sigma * chunk.latents[0])[None]


def continued(pipe: Any, chunk: Chunk, step: int, latent: Tensor) -> NDArray[np.float32]:
    """Frames of the chunk if its first `step` steps had led to `latent`."""

    def replace(pipe: Any, index: int, time: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"latents": latent} if index == step - 1 else tensors

    return generate(pipe, {**chunk.call, "callback_on_step_end": replace})


def flow_between(pipe: Any, before: Chunk, chunk: Chunk) -> Tensor:
    """(1, 2, 8, 8): from the latent of the frame that one chunk begins with to that of the other's."""
    first, second = (_first_latent(pipe, each) for each in (before, chunk))
    tokens = [latent.flatten(1).T[None] for latent in (first, second)]
    return estimate_flow(tokens[0], tokens[1], Grid(1, *first.shape[1:]), FLOW_SCALE)


@torch.no_grad()
def _first_latent(pipe: Any, chunk: Chunk) -> Tensor:
    code = condition(pipe.vae, chunk.call["image"] * 2 - 1, 1)
    return code[0, -LATENT_CHANNELS:, 0]


def _moved(content: Tensor, flow: Tensor) -> Tensor:
    maps = content.transpose(0, 1)
    return move(maps, flow.expand(len(maps), -1, -1, -1)).transpose(0, 1)


def _best_shift(source: Tensor, truth: Tensor) -> Tensor:
    best = source
    for y in range(-REACH, REACH + 1):
        for x in range(-REACH, REACH + 1):
            flow = source.new_tensor([x, y]).view(1, 2, 1, 1).expand(1, 2, *source.shape[-2:])
            shifted = _moved(source, flow)
            nearer = _frame_errors(shifted, truth) < _frame_errors(best, truth)
            best = torch.where(nearer[None, :, None, None], shifted, best)
    return best


def _frame_errors(guess: Tensor, truth: Tensor) -> Tensor:
    return (guess - truth).square().sum((0, 2, 3))


def mean_by_step(curves: Sequence[Sequence[float]]) -> list[float]:
    """Mean of several curves over the steps."""
    return [float(x) for x in np.mean(curves, axis=0)]
