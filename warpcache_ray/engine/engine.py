"""Loads a model and generates videos with it, one at a time."""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from warpcache_ray.core.policy import Policy
from warpcache_ray.core.types import Decision
from warpcache_ray.engine.events import Control, Generation, Result, StepEvent, Timings
from warpcache_ray.engine.install import Installation
from warpcache_ray.engine.ranks import OneRank, Ranks
from warpcache_ray.engine.session import DEFAULT_BUDGET, Session, SessionStore
from warpcache_ray.errors import Cancelled, GenerationFailed, InvalidRequest, WarpCacheError
from warpcache_ray.models import class_name
from warpcache_ray.policy_spec import parse_policy

OnStep = Callable[[StepEvent], Control]


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a loaded model can make: sizes in multiples of `size_multiple` pixels, frames 1 + n·`frame_multiple`."""

    pipeline: str
    transformer: str
    blocks: int
    size_multiple: int
    frame_multiple: int


@dataclass(slots=True)
class _Run:
    """Marks the boundaries of one run: what has been seen, and when."""

    session: Session
    began: float = field(default_factory=time.perf_counter)
    boundary: float | None = None
    latents: Tensor | None = None
    told: int = 0

    def decisions(self) -> dict[str, Decision]:
        """The decisions since the last boundary, by branch."""
        fresh = self.session.stats.records[self.told :]
        self.told = len(self.session.stats.records)
        return {record.branch: record.decision for record in fresh}


class Engine:
    """A diffusers pipeline with the cache installed. Not for concurrent use: one generation at a time."""

    def __init__(
        self, pipeline: Any, ranks: Ranks | None = None, cache_bytes: int = DEFAULT_BUDGET
    ) -> None:
        self.pipeline = pipeline
        self.ranks = ranks or OneRank()
        self.store = SessionStore(cache_bytes)
        self.installation = Installation(pipeline, parse_policy("never"), self.ranks, self.store)
        pipeline.set_progress_bar_config(disable=True)

    @staticmethod
    def load(
        path: str | Path, dtype: str = "float32", device: str = "cpu", revision: str | None = None
    ) -> Engine:
        """Loads a pipeline folder or hub id."""
        from diffusers import DiffusionPipeline

        pipeline = DiffusionPipeline.from_pretrained(
            str(path), dtype=getattr(torch, dtype), revision=revision
        )
        return Engine(pipeline.to(device))

    @property
    def info(self) -> ModelInfo:
        """What this model can make."""
        transformer = self.pipeline.transformer
        patch = transformer.config.patch_size
        patch = patch[-1] if isinstance(patch, (tuple, list)) else patch
        spatial: int = self.pipeline.vae_scale_factor_spatial
        blocks = self.installation.block_count
        # Both pipelines refuse sizes that 16 doesn't divide, whatever their patches.
        return ModelInfo(
            type(self.pipeline).__name__,
            class_name(transformer),
            blocks,
            math.lcm(16, spatial * patch),
            self.pipeline.vae_scale_factor_temporal,
        )

    def generate(
        self,
        generation: Generation,
        policy: Policy,
        on_step: OnStep | None = None,
        request: str | None = None,
    ) -> Result:
        """Runs the unmodified pipeline under `policy`; `on_step` hears of each step and may cancel. By `request` the
        store can be told to forget the run's states.

        Raises:
            InvalidRequest: the pipeline refuses a value.
            Cancelled: `on_step` said so; no further step was started.
            GenerationFailed: the model raised, or its final latents hold what is no number.
        """
        arguments = self._arguments(generation)
        with self.installation.session(policy, request) as session:
            run = _Run(session)
            arguments["callback_on_step_end"] = self._boundary(run, on_step)
            if torch.cuda.is_available():
                torch.cuda.reset_peak_memory_stats()
            try:
                frames = self.pipeline(**arguments).frames[0]
            except WarpCacheError:
                raise
            except ValueError as error:
                if session.first_call is None:
                    raise InvalidRequest(str(error)) from error
                raise GenerationFailed(f"{type(error).__name__}: {error}") from error
            except Exception as error:
                raise GenerationFailed(f"{type(error).__name__}: {error}") from error
            return self._result(run, frames)

    def _arguments(self, generation: Generation) -> dict[str, Any]:
        arguments = generation.pipeline_arguments()
        accepted = inspect.signature(self.pipeline.__call__).parameters
        for name, value in arguments.items():
            if name not in accepted:
                kind = type(self.pipeline).__name__
                raise InvalidRequest(f"{name} = {value!r}: {kind} has no such argument", name)
        generator = torch.Generator().manual_seed(generation.seed)
        return {**arguments, "generator": generator, "output_type": "np"}

    def _boundary(self, run: _Run, on_step: OnStep | None) -> Callable[..., dict[str, Any]]:
        def boundary(
            pipe: Any, index: int, timestep: Tensor, tensors: dict[str, Any]
        ) -> dict[str, Any]:
            if tensors["latents"].is_cuda:
                torch.cuda.synchronize(tensors["latents"].device)
            now = time.perf_counter()
            since = run.boundary or run.session.first_call or run.began
            decisions, stats = run.decisions(), run.session.stats
            event = StepEvent(index, pipe.num_timesteps, now - since, decisions, stats)
            run.latents, run.boundary = tensors["latents"], now
            if index + 1 == pipe.num_timesteps:
                # Decoding is the peak of memory; the features have served.
                self.store.drop(run.session)
            word = on_step(event) if on_step is not None else Control.CONTINUE
            if self.ranks.broadcast(word) == Control.CANCEL:
                raise Cancelled(f"cancelled after step {index + 1} of {pipe.num_timesteps}")
            # Once, at the end: what isn't a number stays none, whatever was skipped since.
            if index + 1 == pipe.num_timesteps and not run.latents.isfinite().all():
                raise GenerationFailed(
                    "the final latents aren't finite: nan or inf in the denoiser's output"
                )
            return {}

        return boundary

    def _result(self, run: _Run, frames: Any) -> Result:
        began, first, last = run.began, run.session.first_call, run.boundary
        assert first is not None
        assert last is not None
        assert run.latents is not None
        timings = Timings(first - began, last - first, time.perf_counter() - last)
        pixels = (np.asarray(frames) * 255).round().astype(np.uint8)
        return Result(pixels, run.latents, run.session.stats, timings)
