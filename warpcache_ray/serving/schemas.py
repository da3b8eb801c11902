"""What requests for a video take, in diffusers' field names, and the check against what the model can make."""

from __future__ import annotations

import json
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from warpcache_ray.config import Defaults, Limits, Lossy, ModelConfig, Quality
from warpcache_ray.errors import InvalidRequest
from warpcache_ray.media import Format
from warpcache_ray.parallel.split import Split
from warpcache_ray.policy_spec import describe_policy, parse_policy
from warpcache_ray.serving.admission import Priority
from warpcache_ray.serving.references import ImageField, Reference

POLICY_BYTES = 1 << 17
"""How much JSON a request's own policy may be: measurements of 50 steps on both branches with all their digits have
room. Larger ones belong into the service's configuration."""


LADDER: tuple[Lossy, ...] = get_args(Lossy)
"""From the best one to the cheapest."""


class VideoFields(BaseModel):
    """One video to make. What is left out takes the service's default; without a seed one is drawn and told."""

    model_config = ConfigDict(extra="forbid", strict=True)
    image_field: ClassVar[str] = "image"
    """What the field for an image is called."""

    prompt: str = Field(min_length=1, max_length=4000)
    negative_prompt: str | None = Field(None, max_length=4000)
    height: int | None = Field(None, ge=16)
    width: int | None = Field(None, ge=16)
    num_frames: int | None = Field(None, ge=1)
    num_inference_steps: int | None = Field(None, ge=1)
    guidance_scale: float | None = Field(None, ge=0, le=50)
    seed: int | None = Field(None, ge=0, lt=2**63)
    fps: int | None = Field(None, ge=1, le=120)
    policy: str | dict[str, Any] | None = None
    quality: Quality | Annotated[float, Field(gt=0, lt=1)] | None = None
    quality_floor: Lossy | None = None
    priority: Priority = "normal"
    deadline_s: float | None = Field(None, gt=0, allow_inf_nan=False)
    output_format: Format | None = None
    webhook_url: str | None = Field(None, min_length=1, max_length=2048)
    lora: str | None = Field(None, min_length=1, max_length=64)
    lora_scale: float | None = Field(None, ge=-4, le=4, allow_inf_nan=False)

    @field_validator("prompt")
    @classmethod
    def _not_blank(cls, prompt: str) -> str:
        if not prompt.strip():
            raise ValueError("must not be blank")
        return prompt

    @field_validator("policy")
    @classmethod
    def _small(cls, policy: str | dict[str, Any] | None) -> str | dict[str, Any] | None:
        try:
            # What is no JSON is no policy either, which its parser says.
            size = len(json.dumps(policy, default=repr))
        except RecursionError:
            raise ValueError("the policy is nested too deeply") from None
        if size > POLICY_BYTES:
            raise ValueError(f"the policy has {size} bytes; at most {POLICY_BYTES} are allowed")
        return policy

    @model_validator(mode="after")
    def _one_choice(self) -> VideoFields:
        if self.policy is not None and self.quality is not None:
            raise ValueError(
                f"policy = {self.policy!r:.100} and quality = {self.quality!r} exclude each other; give one of them"
            )
        if self.lora_scale is not None and self.lora is None:
            raise ValueError(f"lora_scale = {self.lora_scale}: nothing to scale; give lora too")
        return self

    @property
    def reference(self) -> Reference | None:
        """The image, if there is one."""
        found: Reference | None = getattr(self, self.image_field, None)
        return found

    def resolved(self, served: ModelConfig, frame_multiple: int | None) -> VideoFields:
        """The request with the video's measures in these fields, whichever way they were given."""
        return self

    def job_request(self, defaults: Defaults, seed: int) -> dict[str, Any]:
        """The fields of a job: given ones before the service's defaults."""
        of_the_job = set(VideoFields.model_fields) - {"policy", "quality", "quality_floor"}
        given = self.model_dump(include=of_the_job, exclude_none=True)
        usual = {name: getattr(defaults, name) for name in defaults.__slots__}
        usual = {name: value for name, value in usual.items() if value is not None}
        return {"seed": seed, **usual, **given}


class FollowedRequest(VideoFields):
    """One whose client stays to hear what happens to the job."""

    image: ImageField = None
    cancel_on_disconnect: bool = False


class GenerateRequest(FollowedRequest):
    """What `POST /generate` takes: the video, and how to answer."""

    response_format: Literal["url", "b64_json"] = "url"
    wait: bool = False

    @model_validator(mode="after")
    def _waits(self) -> GenerateRequest:
        if self.cancel_on_disconnect and not self.wait:
            raise ValueError(
                "cancel_on_disconnect = True: nobody stays connected; give wait = true too"
            )
        return self


def wanted_policy(asked: VideoFields) -> dict[str, Any]:
    """The policy that a request gives, in full, or `{"quality": …}` for the one that this stands for.

    Raises:
        InvalidPolicy: there is no such policy.
    """
    if asked.policy is None:
        return {"quality": asked.quality}
    return describe_policy(parse_policy(asked.policy))


class Invalidation(BaseModel):
    """Whose cache states are void: one job's, or without `job_id` those of all."""

    model_config = ConfigDict(extra="forbid", strict=True)

    job_id: str | None = None


def check_shape(request: dict[str, Any], limits: Limits, info: dict[str, Any]) -> None:
    """Refuses what the model can't make or the service doesn't allow.

    Raises:
        InvalidRequest: names the field, the value and what is allowed.
    """
    loras = info.get("loras", ())
    if "lora" in request and request["lora"] not in loras:
        known = f"one of: {', '.join(loras)}" if loras else "left out, for the model has no LoRAs"
        raise _refusal(request, "lora", known)
    multiple = info["size_multiple"]
    for name in ("height", "width", "num_frames", "num_inference_steps"):
        largest = getattr(limits, name)
        if request.get(name, 1) > largest:
            raise _refusal(request, name, f"at most {largest}")
    for name in ("height", "width"):
        if request.get(name, 0) % multiple:
            raise _refusal(request, name, f"a multiple of {multiple}")
    form = request.get("output_format")
    if form == "png" and info.get("makes") != "image":
        raise _refusal(request, "output_format", "mp4, webm or gif, for the model makes videos")
    _check_frames(request, info)
    size = {n: request[n] for n in ("height", "width", "num_frames") if n in request}
    # Sizes that are left to the pipeline are checked by the ranks.
    if info["split"] and len(size) == 3:
        Split(**info["split"]).check(**size)


def _check_frames(request: dict[str, Any], info: dict[str, Any]) -> None:
    step, lost = info["frame_multiple"], info.get("dropped", 0)
    frames = request.get("num_frames", 1 + lost)
    if info.get("makes") == "image" and frames > 1:
        raise _refusal(request, "num_frames", "1, for the model makes images")
    if (frames - 1) % step:
        raise _refusal(request, "num_frames", f"1 more than a multiple of {step}")
    if frames <= lost:
        said = f"at least {lost + 1}, for the model leaves out the first {lost}"
        raise _refusal(request, "num_frames", said)


def _refusal(request: dict[str, Any], name: str, allowed: str) -> InvalidRequest:
    return InvalidRequest(f"{name} = {request[name]!r} is not allowed; it must be {allowed}", name)
