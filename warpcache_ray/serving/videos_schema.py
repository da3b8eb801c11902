"""The OpenAI videos protocol in terms of ours: its requests as our fields, our records as its objects."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from warpcache_ray.config import ModelConfig, ServiceConfig
from warpcache_ray.errors import InvalidRequest, NotFound
from warpcache_ray.serving.lifecycle import Status
from warpcache_ray.serving.references import ImageField
from warpcache_ray.serving.schemas import VideoFields

STATUSES = {
    Status.QUEUED: "queued",
    Status.RUNNING: "in_progress",
    Status.SUCCEEDED: "completed",
    Status.FAILED: "failed",
    Status.CANCELLED: "failed",
}
"""The protocol has four; clients that meet a fifth stop early or never. A cancellation is told by the error's code."""

_SIZE = re.compile(r"[1-9][0-9]{0,5}x[1-9][0-9]{0,5}")
_PART = re.compile(r"(\w+)\[(\w*)\](\[\])?")
_TEXT = ("prompt", "negative_prompt", "model", "size")


class VideoRequest(VideoFields):
    """What `POST /v1/videos` takes: OpenAI's fields beside ours, which go before `size` and `seconds`."""

    image_field: ClassVar[str] = "input_reference"

    input_reference: ImageField = None
    model: str | None = None
    size: str | None = None
    seconds: float | None = Field(None, gt=0, le=3600)
    n: Literal[1] | None = None
    num_outputs_per_prompt: Literal[1] | None = None

    @field_validator("size")
    @classmethod
    def _two_numbers(cls, size: str | None) -> str | None:
        if size is not None and not _SIZE.fullmatch(size):
            raise ValueError("must be WIDTHxHEIGHT, e.g. 832x480")
        return size

    @field_validator("seconds", mode="before")
    @classmethod
    def _number(cls, seconds: Any) -> Any:
        # OpenAI's clients send it as text.
        try:
            return float(seconds) if isinstance(seconds, str) else seconds
        except ValueError:
            return seconds

    @field_validator("quality", mode="before")
    @classmethod
    def _lossless(cls, quality: Any) -> Any:
        # The name that SGLang and vLLM-Omni have for it.
        return "exact" if quality == "lossless" else quality

    def resolved(self, served: ModelConfig, frame_multiple: int | None) -> VideoFields:
        """With what `size` and `seconds` say as width, height and frames, where those aren't given themselves.

        Frames are seconds × fps, rounded to the nearest number that the model can make (1 more than a multiple of
        `frame_multiple`, which is None where it makes images: they have no seconds), of two as near to the larger.

        Raises:
            InvalidRequest: more seconds than the service allows.
        """
        meant: dict[str, int] = {}
        if self.size is not None:
            width, height = map(int, self.size.split("x"))
            meant |= {"width": width, "height": height}
        if self.seconds is not None and self.num_frames is None and frame_multiple is not None:
            fps, most = self.fps or served.defaults.fps, served.limits.num_frames
            steps = math.floor((self.seconds * fps - 1) / frame_multiple + 0.5)
            frames = 1 + frame_multiple * max(0, steps)
            if frames > most:
                raise InvalidRequest(
                    f"seconds = {self.seconds:g} is not allowed; at fps = {fps} that is num_frames = {frames}, "
                    f"which must be at most {most}",
                    "seconds",
                )
            meant["num_frames"] = frames
        return self.model_copy(
            update={name: value for name, value in meant.items() if getattr(self, name) is None}
        )


def form_fields(items: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """A form's fields as a JSON body would have them: what isn't text by its nature is JSON where it can be;
    `policy[name]` and `policy[steps][]` are parts of one value: so the openai client sends objects and arrays.

    Raises:
        InvalidRequest: a field that is given both whole and in parts.
    """
    fields: dict[str, Any] = {}
    for name, text in items:
        value = text if name in _TEXT else _value(text)
        part = _PART.fullmatch(name)
        if part is None:
            fields[name] = value
            continue
        name, key, several = part.groups()
        try:
            _put(fields.setdefault(name, {} if key else []), key, value, bool(several))
        except AttributeError:
            said = f"{name} is given in different ways: whole, as an object or as an array"
            raise InvalidRequest(said, name) from None
    return fields


def unfold(body: dict[str, Any]) -> dict[str, Any]:
    """The fields with those in `extra_body` (an object, or the JSON of one); the ones beside it go first.

    Raises:
        InvalidRequest: `extra_body` is something else.
    """
    fields = dict(body)
    extra = fields.pop("extra_body", None)
    extra = _value(extra) if isinstance(extra, str) else extra
    if not isinstance(extra, dict | None):
        raise InvalidRequest(f"extra_body = {extra!r:.100}: must be a JSON object", "extra_body")
    return {**(extra or {}), **fields}


def check_model(asked: str | None, config: ServiceConfig) -> None:
    """The model that a request names is the one that is served.

    Raises:
        NotFound: it's another.
    """
    if asked not in (None, config.name, config.model.path):
        raise NotFound(
            f"model = {asked!r} is not served here; {config.name!r} is ({config.model.path})",
            "model",
        )


def job_id(video: str) -> str:
    """The job whose id on this protocol is `video`.

    Raises:
        NotFound: no job has such an id here.
    """
    if not video.startswith("video_"):
        raise unknown(video)
    return f"job_{video.removeprefix('video_')}"


def video_id(job: str) -> str:
    """A job's id on this protocol."""
    return f"video_{job.removeprefix('job_')}"


def unknown(video: str) -> NotFound:
    """There is no such video (any more)."""
    return NotFound(f"video {video!r} is unknown (or expired)", "video_id")


def video(job: dict[str, Any], config: ServiceConfig, base_url: str) -> dict[str, Any]:
    """A job's record as a `Video`, with what clients of other servers read beside OpenAI's fields."""
    known = {**job["request"], **job["result"]}
    width, height, frames = (known.get(name) for name in ("width", "height", "num_frames"))
    done, ended = job["status"] == Status.SUCCEEDED, job["finished_at"]
    body = {
        "id": video_id(job["id"]),
        "object": "video",
        "model": config.name,
        "status": STATUSES[job["status"]],
        "progress": 100 if done else min(99, int(100 * job["progress"])),
        "prompt": known["prompt"],
        "size": f"{width}x{height}" if width and height else None,
        "seconds": f"{round(frames / known['fps'], 2):g}" if frames else None,
        "fps": known["fps"],
        "num_frames": frames,
        "seed": known["seed"],
        "created_at": int(job["created_at"]),
        "completed_at": int(ended) if ended else None,
        "expires_at": int(ended + config.result_ttl_s) if ended else None,
        "error": job["error"],
    }
    return body | _outcome(job, base_url) if done else body


def _outcome(job: dict[str, Any], base_url: str) -> dict[str, Any]:
    timings = job["result"].get("timings", {})
    return {
        "url": f"{base_url}v1/videos/{video_id(job['id'])}/content",
        "inference_time_s": round(sum(timings.values()), 4),
        "stage_durations": timings,
        "peak_memory_mb": job["cache"].get("peak_memory_bytes", 0) / 2**20,
    }


def _value(text: Any) -> Any:
    # A file stays one, and text that is no JSON stays text: whether that will do is for the schema to say.
    try:
        return json.loads(text) if isinstance(text, str) else text
    except (TypeError, ValueError, RecursionError):
        return text


def _put(place: Any, key: str, value: Any, several: bool) -> None:
    if not key:
        place.append(value)
    elif several:
        place.setdefault(key, []).append(value)
    else:
        place.update({key: value})
