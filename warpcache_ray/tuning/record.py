"""Uncached runs, written down: every output of the denoiser, and where in the run it stands."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from warpcache_ray.core.gram import FORWARD, GUIDED, outputs_gram
from warpcache_ray.core.types import Course
from warpcache_ray.engine.clock import StepClock
from warpcache_ray.engine.install import find
from warpcache_ray.errors import InvalidRequest
from warpcache_ray.models.seam import Announcement, arguments_of, attach, detach
from warpcache_ray.tuning.blocks import Blocks, watched


@dataclass(slots=True)
class Recording:
    """One run: `outputs` by branch, in order of the steps, on the CPU; `result` is what the pipeline gave."""

    outputs: dict[str, list[Tensor]] = field(default_factory=dict)
    course: Course | None = None
    result: Any = None
    blocks: dict[str, list[list[float]]] = field(default_factory=dict)
    """Changes by branch, block and step: `tuning.blocks`."""

    @property
    def branches(self) -> tuple[str, ...]:
        """The branches it has, in the order of their calls."""
        return tuple(self.outputs)

    @property
    def shape(self) -> tuple[int, ...]:
        """Channels, frames, rows, columns of an output."""
        return tuple(next(iter(self.outputs.values()))[0].shape[1:])

    def gram(self) -> Tensor:
        """Products of all outputs, (branches · steps, branches · steps)."""
        flat = [torch.stack([o.flatten() for o in self.outputs[b]]) for b in self.branches]
        return outputs_gram(torch.cat(flat))


class _Recorder:
    """Listens to a transformer and keeps what it gives."""

    def __init__(self, pipe: Any, blocks: Blocks) -> None:
        self.clock = StepClock(pipe)
        self.blocks = blocks
        self.recording = Recording(blocks=blocks.changes)

    def called(
        self,
        transformer: nn.Module,
        said: Announcement,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        proceed: Callable[[], Any],
    ) -> Any:
        arguments = arguments_of(transformer, args, kwargs)
        text = arguments.get("encoder_hidden_states")
        step = self.clock.tick(said, arguments["timestep"], text=text)
        self.blocks.branch = step.branch
        out = proceed()
        self.recording.course = step.course
        self.recording.outputs.setdefault(step.branch, []).append(out[0].float().cpu())
        return out

    def ended(self) -> None:
        """Nothing to do."""


def record(pipe: Any, call: Mapping[str, Any]) -> Recording:
    """Runs the pipeline uncached.

    Raises:
        InvalidRequest: the cache is on, the pipeline has two transformers, or branches that can't be planned.
    """
    if getattr(pipe, "transformer_2", None) is not None:
        raise InvalidRequest("pipelines with two transformers can't be profiled yet", "pipe")
    if find(pipe) is not None:
        raise InvalidRequest("the cache is on; call disable_dit_cache first", "pipe")
    with watched(pipe.transformer) as blocks:
        recorder = _Recorder(pipe, blocks)
        attach(pipe.transformer, recorder)
        try:
            recorder.recording.result = run(pipe, call)
        finally:
            detach(pipe.transformer)
    branches = tuple(recorder.recording.outputs)
    if branches not in (FORWARD, GUIDED):
        raise InvalidRequest(
            f"pipe: calls the branches {', '.join(branches)}; cond, or cond and uncond can be profiled",
            "pipe",
        )
    return recorder.recording


def run(pipe: Any, call: Mapping[str, Any]) -> Any:
    """What the pipeline gives for a call; a generator in it starts where it stood, every time."""
    arguments, generator = dict(call), call.get("generator")
    if isinstance(generator, torch.Generator):
        arguments["generator"] = generator.clone_state()
    elif generator is not None:
        arguments["generator"] = [each.clone_state() for each in generator]
    out = pipe(**arguments)
    return out.frames if hasattr(out, "frames") else out[0]
