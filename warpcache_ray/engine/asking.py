"""How a generation is put to a pipeline, in that one's own words, and how its steps and frames are read."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor

from warpcache_ray.engine.events import Generation
from warpcache_ray.engine.instead import instead
from warpcache_ray.errors import InvalidRequest
from warpcache_ray.models.pipelines import (
    CALLED_BACK,
    EVERY_CALL,
    RATE,
    accepted,
    dropped,
    own_scale,
    temporal,
    traits_of,
    usual,
)

StepEnded = Callable[[Any, int, Tensor, dict[str, Any]], dict[str, Any]]
"""As diffusers' callback_on_step_end: pipeline, index, timestep, tensors; gives those that are to be replaced."""


def takes_image(pipeline: Any) -> Literal["none", "optional", "required"]:
    """Whether a pipeline makes videos from an image: none, optional or required."""
    image = accepted(type(pipeline)).get("image")
    if image is None:
        return "none"
    return "required" if image.default is image.empty else "optional"


def arguments(pipeline: Any, generation: Generation) -> dict[str, Any]:
    """The arguments of the pipeline's call, without generator and output type.

    Raises:
        InvalidRequest: it takes no such argument, or needs an image.
    """
    kind, traits = type(pipeline), traits_of(type(pipeline))
    known, fields = accepted(kind), generation.pipeline_arguments()
    if temporal(pipeline) is None and fields.pop("num_frames", 1) != 1:
        said = f"num_frames = {generation.num_frames!r}: {kind.__name__} makes images; it must be 1"
        raise InvalidRequest(said, "num_frames")
    if fields.get("num_frames", math.inf) <= (lost := dropped(pipeline)):
        said = f"num_frames = {generation.num_frames!r}: the first {lost} are left out; it must be at least {lost + 1}"
        raise InvalidRequest(said, "num_frames")
    if _guider(pipeline) is not None:
        fields.pop("guidance_scale", None)
    named = {name: traits.names.get(name, name) for name in fields}
    for name, own in named.items():
        if own not in known:
            said = f"{name} = {fields[name]!r}: {kind.__name__} has no such argument"
            raise InvalidRequest(said, name)
    if "image" not in fields and takes_image(pipeline) == "required":
        raise InvalidRequest(
            f"image is missing: {kind.__name__} makes videos from an image", "image"
        )
    always = {name: value for name, value in EVERY_CALL.items() if name in known}
    rate = {name: generation.fps for name in RATE if name in known and generation.fps}
    return {**always, **traits.given, **rate, **{named[n]: v for n, v in fields.items()}}


@contextmanager
def guided_by(pipeline: Any, scale: float | None) -> Iterator[None]:
    """Within, a pipeline that has its guidance from a component has this scale there; one that doesn't keep it has it,
    or without one its own, where the clock reads it."""
    guider, own = _guider(pipeline), own_scale(pipeline)
    if own is not None:
        told = usual(pipeline)["guidance_scale"] if scale is None else scale
        with instead(pipeline, own, told):
            yield
    elif guider is not None and scale is not None:
        with instead(guider, "guidance_scale", scale):
            yield
    else:
        yield


def _guider(pipeline: Any) -> Any:
    """The component, which some pipelines have a name for alone."""
    return getattr(pipeline, "guider", None)


@contextmanager
def steps_told(pipeline: Any, ended: StepEnded) -> Iterator[dict[str, Any]]:
    """Within, `ended` hears of each step of the pipeline's call: by the arguments that are given, or where it takes no
    such argument by its scheduler's steps."""
    if CALLED_BACK in accepted(type(pipeline)):
        yield {CALLED_BACK: ended}
        return
    scheduler = pipeline.scheduler
    step = scheduler.step

    def stepped(output: Tensor, timestep: Tensor, sample: Tensor, **how: Any) -> Any:
        latents, *others = step(output, timestep, sample, **how)
        replaced = ended(pipeline, scheduler.step_index - 1, timestep, {"latents": latents})
        return (replaced.get("latents", latents), *others)

    with instead(scheduler, "step", stepped):
        yield {}


def frames_of(out: Any) -> Any:
    """The video in a pipeline's output (T, H, W, 3); of an image one frame."""
    return out.frames[0] if hasattr(out, "frames") else out.images[:1]


def generator(seed: int) -> torch.Generator:
    """The source of a generation's noise, on the host: the same on every device."""
    return torch.Generator().manual_seed(seed)
