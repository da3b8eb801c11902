"""Loads a model and generates videos with it, one at a time."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from warpcache_ray.core.policy import Policy
from warpcache_ray.engine import asking
from warpcache_ray.engine.checkpoint import Checkpoint
from warpcache_ray.engine.decoding import Decoding, free_memory, tiled_if_too_large
from warpcache_ray.engine.events import Generation, Result, Timings
from warpcache_ray.engine.install import Installation
from warpcache_ray.engine.ranks import OneRank, Ranks
from warpcache_ray.engine.run import OnStep, Run
from warpcache_ray.engine.session import DEFAULT_BUDGET, SessionStore
from warpcache_ray.errors import (
    GenerationFailed,
    InvalidConfig,
    InvalidRequest,
    OutOfMemory,
    WarpCacheError,
)
from warpcache_ray.models import class_name
from warpcache_ray.models.adapter import patch_of
from warpcache_ray.models.loras import names_of, wearing
from warpcache_ray.models.pipelines import dropped, refusal, resumable, spatial, temporal
from warpcache_ray.models.weights import Weights
from warpcache_ray.policy_spec import parse_policy


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a loaded model can make: sizes in multiples of `size_multiple` pixels, frames 1 + n·`frame_multiple`, of
    which the first `dropped` are left out; and whether it makes that from an image. `loras` are those that a request
    may name. An image is a video of one frame."""

    pipeline: str
    transformer: str
    blocks: int
    size_multiple: int
    frame_multiple: int
    takes_image: Literal["none", "optional", "required"]
    loras: tuple[str, ...] = ()
    makes: Literal["video", "image"] = "video"
    dropped: int = 0


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
        """Loads a pipeline folder or hub id.

        Raises:
            InvalidConfig: it can't be loaded.
        """
        return Engine(Weights(path, revision, dtype).load(device))

    @property
    def info(self) -> ModelInfo:
        """What this model can make.

        Raises:
            InvalidConfig: its pipeline isn't of the kind that can be served.
        """
        self._check_pipeline()
        transformer = self.pipeline.transformer
        side = max(patch_of(transformer.config)[1:])
        frames = temporal(self.pipeline)
        # Pipelines refuse sizes that 16 doesn't divide, whatever their patches.
        return ModelInfo(
            type(self.pipeline).__name__,
            class_name(transformer),
            self.installation.block_count,
            math.lcm(16, spatial(self.pipeline) * side),
            frames or 1,
            asking.takes_image(self.pipeline),
            names_of(self.pipeline),
            "image" if frames is None else "video",
            dropped(self.pipeline),
        )

    def _check_pipeline(self) -> None:
        kind = type(self.pipeline)
        why = refusal(kind, lambda name: hasattr(self.pipeline, name))
        if why is not None:
            said = f"model.path: {kind.__name__} {why}, so it can't be served; in Python "
            raise InvalidConfig(f"{said}enable_dit_cache takes it", "model.path")

    @contextmanager
    def plain(self) -> Iterator[Any]:
        """The pipeline without the cache, for as long as the block takes."""
        self.installation.remove()
        try:
            yield self.pipeline
        finally:
            self.installation = Installation(
                self.pipeline, parse_policy("never"), self.ranks, self.store
            )

    def generate(
        self,
        generation: Generation,
        policy: Policy,
        on_step: OnStep | None = None,
        request: str | None = None,
        *,
        epoch: int = 0,
        checkpoint: Checkpoint | None = None,
        decode: bool = True,
    ) -> Result:
        """Runs the unmodified pipeline under `policy`; `on_step` hears of each step and may cancel, or raise the
        `epoch` that the run's states belong to. By `request` the store can be told to forget them. From a `checkpoint`
        of the same generation only the steps after it are made; one of the last step is only decoded. Of several ranks
        one has to `decode`; those that decode together do, and only it keeps the frames.

        Raises:
            InvalidRequest: the pipeline refuses a value, or has no such LoRA.
            Cancelled: `on_step` said so; no further step was started.
            OutOfMemory: the model ran out of memory; the next generation starts clean.
            GenerationFailed: the model raised, or its final latents hold what is no number.
        """
        pipeline, generator = self.pipeline, asking.generator(generation.seed)
        arguments = asking.arguments(pipeline, generation)
        together = self.ranks.decode_together
        shown = decode or together
        arguments |= {"generator": generator, "output_type": "np" if shown else "latent"}
        with ExitStack() as stack:
            stack.enter_context(wearing(pipeline, generation.lora, generation.lora_scale))
            stack.enter_context(asking.guided_by(pipeline, generation.guidance_scale))
            start = checkpoint.step if checkpoint else 0
            session = stack.enter_context(self.installation.session(policy, request, start))
            about = (on_step, checkpoint, epoch, resumable(pipeline))
            run = Run(session, self.store, self.ranks, generator, *about)
            arguments |= stack.enter_context(asking.steps_told(pipeline, run.step_ended))
            decoding = Decoding()
            # One of several can't try again: the others wait for the rest of its first attempt.
            if not together:
                decoding = stack.enter_context(tiled_if_too_large(pipeline.vae))
            frames = self._run(run, arguments)
            return _result(run, frames if decode else None, decoding)

    def _run(self, run: Run, arguments: dict[str, Any]) -> Any:
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        failure: WarpCacheError
        try:
            return asking.frames_of(self.pipeline(**arguments))
        except WarpCacheError:
            raise
        except torch.OutOfMemoryError as error:
            failure = OutOfMemory(f"the model ran out of memory: {error}")
        except ValueError as error:
            if run.session.first_call is None:
                raise InvalidRequest(str(error)) from error
            raise GenerationFailed(f"{type(error).__name__}: {error}") from error
        except Exception as error:
            raise GenerationFailed(f"{type(error).__name__}: {error}") from error
        # Not in the handler: the traceback would keep what the failed run had made.
        free_memory()
        raise failure


def _result(run: Run, frames: Any, decoding: Decoding) -> Result:
    began, last = run.began, run.boundary
    assert last is not None
    # None: the checkpoint was of the last step.
    first = run.session.first_call or last
    assert run.latents is not None
    timings = Timings(first - began, last - first, time.perf_counter() - last)
    shown = np.zeros((0, 0, 0, 3)) if frames is None else np.asarray(frames)
    pixels = (shown * 255).round().astype(np.uint8)
    stats = run.session.stats
    return Result(pixels, run.latents, stats, timings, run.epoch, run.session.start, decoding.tiled)
