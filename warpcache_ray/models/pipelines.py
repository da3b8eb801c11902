"""Where diffusers' pipelines differ in what they are asked and what they give: told by the pipelines themselves as far
as they tell it, else data."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

SPATIAL = (
    "vae_scale_factor_spatial",
    "vae_spatial_compression_ratio",
    "vae_spatial_scale_factor",
    "vae_scale_factor",
)
"""What pipelines call the pixels that a row of the latent spans,"""
TEMPORAL = (
    "vae_scale_factor_temporal",
    "vae_temporal_compression_ratio",
    "vae_temporal_scale_factor",
)
"""and the frames."""
RATE = ("frame_rate", "fps")
"""What they call frames per second, if the motion depends on these."""
CALLED_BACK = "callback_on_step_end"
EVERY_CALL: Mapping[str, Any] = {"use_resolution_binning": False}
"""Arguments of every call, of pipelines that take them: the size is made that was asked for, not one near to it."""
ASKED_FOR = ("self", "prompt", "image")
"""Arguments without a default that the service can give,"""
FOOTAGE = ("video", "control_video")
"""and those that a pipeline with no argument for the number of frames makes its own from."""
FORGETFUL = ("CogVideoXDPMScheduler",)
"""Solvers that have the pipeline's loop remember for them: no run can go on in its middle."""


@dataclass(frozen=True, slots=True)
class Traits:
    """What a class of pipelines tells nowhere. `names` are its own for fields of a generation, `given` more arguments
    of its calls. `guided`: with a scale above 1 it has an uncond, and no property that says so. `dropped`: how many of
    the first frames it may leave out. `unfit`: why it can't be served."""

    names: Mapping[str, str] = field(default_factory=dict)
    given: Mapping[str, Any] = field(default_factory=dict)
    guided: bool = False
    dropped: int = 0
    unfit: str = ""


_GUIDED = Traits(guided=True)
_TRUE_CFG = Traits({"guidance_scale": "true_cfg_scale"}, {"negative_prompt": " "}, guided=True)
_FRAMES = Traits({"num_frames": "frames"})
_SOUND = Traits(unfit="makes sound beside the video, which the service can't give")

TRAITS: dict[str, Traits] = {
    "AllegroPipeline": _GUIDED,
    "CogVideoXPipeline": _GUIDED,
    "CogVideoXImageToVideoPipeline": _GUIDED,
    "ErnieImagePipeline": Traits(unfit="tells nowhere how many steps it makes"),
    "HunyuanVideoImageToVideoPipeline": Traits(dropped=4),
    "Kandinsky5T2VPipeline": _GUIDED,
    "Kandinsky5I2VPipeline": _GUIDED,
    "LTX2ConditionPipeline": _SOUND,
    "LTX2DFRPipeline": _SOUND,
    "LTX2DFRTemporalRefinePipeline": _SOUND,
    "LTX2HDRPipeline": _SOUND,
    "LTX2ImageToVideoPipeline": _SOUND,
    "LTX2InContextPipeline": _SOUND,
    "LTX2Pipeline": _SOUND,
    "LattePipeline": Traits({"num_frames": "video_length"}),
    # Without a negative prompt it isn't guided, whatever the scale; its authors' is a space.
    "QwenImagePipeline": _TRUE_CFG,
    "SanaImageToVideoPipeline": _FRAMES,
    "SanaVideoPipeline": _FRAMES,
}


def traits_of(kind: type) -> Traits:
    """Those of a pipeline class, or of the one it derives from."""
    return next((TRAITS[k.__name__] for k in kind.__mro__ if k.__name__ in TRAITS), Traits())


def accepted(kind: type) -> Mapping[str, inspect.Parameter]:
    """The arguments that a pipeline class can be called with."""
    call: Callable[..., Any] = kind.__call__
    return inspect.signature(call).parameters


def refusal(kind: type, has: Callable[[str], bool]) -> str | None:
    """Why a pipeline class can't be served, as a sentence without its subject; None if it can. `has` tells whether its
    pipelines have an attribute."""
    traits, call = traits_of(kind), accepted(kind)
    if traits.unfit:
        return traits.unfit
    needed = {"scheduler": ("scheduler",), "vae": ("vae",), SPATIAL[0]: SPATIAL}
    missing = [name for name, known in needed.items() if not any(map(has, known))]
    missing += [name for name in ("prompt", "height", "width") if name not in call]
    if missing:
        return f"has no {', '.join(missing)}"
    if CALLED_BACK not in call and not hasattr(kind, "num_timesteps"):
        return f"tells of its steps neither by {CALLED_BACK} nor by num_timesteps"
    named = [each for each in call.values() if each.kind is not each.VAR_KEYWORD]
    wanted = [each.name for each in named if each.default is each.empty]
    wanted += [] if makes_video(kind) else [name for name in FOOTAGE if name in call]
    beyond = [name for name in dict.fromkeys(wanted) if name not in ASKED_FOR]
    return f"needs {', '.join(beyond)}, which the service can't give" if beyond else None


def makes_video(kind: type) -> bool:
    """The calls of a pipeline class say how many frames; others make images."""
    return traits_of(kind).names.get("num_frames", "num_frames") in accepted(kind)


def usual(pipeline: Any) -> dict[str, Any]:
    """What a pipeline takes for arguments that aren't given, by the names of a generation's fields."""
    defaults = {name: each.default for name, each in accepted(type(pipeline)).items()}
    for name, own in traits_of(type(pipeline)).names.items():
        defaults[name] = defaults[own]
    guider = getattr(pipeline, "guider", None)
    return defaults if guider is None else {**defaults, "guidance_scale": guider.guidance_scale}


def spatial(pipeline: Any) -> int:
    """Pixels that a row of the latent spans."""
    found: int = next(getattr(pipeline, name) for name in SPATIAL if hasattr(pipeline, name))
    return found


def temporal(pipeline: Any) -> int | None:
    """Frames that each of the latent's spans after the first; None of a pipeline that makes images."""
    if not makes_video(type(pipeline)):
        return None
    return next((getattr(pipeline, name) for name in TEMPORAL if hasattr(pipeline, name)), 1)


def dropped(pipeline: Any) -> int:
    """How many of the first frames a pipeline leaves out: of a model whose image is beside the latents, not in them."""
    first = traits_of(type(pipeline)).dropped
    if not first:
        return 0
    concatenated = pipeline.transformer.config.get("image_condition_type") == "latent_concat"
    return first if concatenated else 0


def own_scale(pipeline: Any) -> str | None:
    """What the pipeline calls its guidance, if that isn't `guidance_scale`: it keeps it nowhere, so that this is also
    the attribute in which a run of the engine tells it."""
    return traits_of(type(pipeline)).names.get("guidance_scale")


def guided(pipeline: Any) -> bool:
    """The run at hand has an uncond beside cond at each step."""
    said = getattr(pipeline, "do_classifier_free_guidance", None)
    if said is not None:
        return bool(said)
    guider = getattr(pipeline, "guider", None)
    if guider is not None:
        return bool(guider.num_conditions > 1)
    has_uncond = traits_of(type(pipeline)).guided
    return has_uncond and (guidance_scale(pipeline) or 0.0) > 1


def guidance_scale(pipeline: Any) -> float | None:
    """By how much the run at hand weighs cond − uncond."""
    own = own_scale(pipeline)
    if own is not None:
        told: float | None = getattr(pipeline, own, None)
        return told
    guider: Any = getattr(pipeline, "guider", None) or pipeline
    scale: float | None = getattr(guider, "guidance_scale", None)
    return scale


def resumable(pipeline: Any) -> bool:
    """All that a run needs to go on in its middle are latents, solver and generator."""
    return type(pipeline.scheduler).__name__ not in FORGETFUL
