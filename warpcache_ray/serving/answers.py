"""What routes answer, as the API's description tells it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from warpcache_ray.media import MEDIA_TYPES
from warpcache_ray.serving.choices import Source
from warpcache_ray.serving.lifecycle import Delivery, Status

Answers = dict[int | str, dict[str, Any]]


class Error(BaseModel):
    """What went wrong: `param` names the field, `code` is stable, `retryable` says whether the same request may
    succeed later."""

    message: str
    type: str
    param: str | None
    code: str
    retryable: bool


class PolicyOrigin(BaseModel):
    """Where a job's policy comes from, and for which quality; `slot` and `version` say which of the published ones it
    is."""

    source: Source | None = None
    quality: str | float | None = None
    slot: str | None = None
    version: int | None = None
    why: str = ""


class JobRecord(BaseModel):
    """A job and all that became of it. Times are unix seconds."""

    id: str
    status: Status
    request: dict[str, Any] = Field(description="With the defaults and the seed that it got.")
    policy: dict[str, Any]
    policy_version: str = Field(description="A digest of the policy.")
    policy_origin: PolicyOrigin = Field(
        description="Where it comes from; settled with the first attempt."
    )
    lowered_to: str | None = Field(description="The quality that load brought it to, if it did.")
    created_at: float
    started_at: float | None
    finished_at: float | None
    progress: float = Field(ge=0, le=1, description="Share of the steps that are made.")
    step: int
    total_steps: int | None
    queue_position: int | None = Field(ge=1, description="1: it is next.")
    eta_s: float | None = Field(description="Until its end, if no other comes.")
    epoch: int
    fence: int = Field(description="The number of its newest attempt.")
    replica: str | None
    checkpoint_step: int | None
    cache: dict[str, Any] = Field(description="What the newest attempt's cache did.")
    attempts: list[dict[str, Any]] = Field(description="All that were made, the newest last.")
    result: dict[str, Any] = Field(description="Of the video: its measures, warnings, timings.")
    video: str | None = Field(description="Where the video is, once there is one.")
    error: Error | None
    webhook: Delivery | None


class FinishedRecord(JobRecord):
    """The record of a job that was waited for; with its video, if that was asked for."""

    b64_json: str | None = None


class Problem(BaseModel):
    """The answer of a request that wasn't served; with `wait`, also the record of the job that failed."""

    error: Error
    job: JobRecord | None = None


PROBLEMS: Answers = {
    "4XX": {"description": "Refused; the error says why", "model": Problem},
    "5XX": {"description": "Failed; the error says whether to try again", "model": Problem},
}


class Health(BaseModel):
    """Whether jobs are being made."""

    status: Literal["ok", "asleep", "starting"]
    version: str
    replicas: int = Field(description="How many are ready.")
    jobs: dict[Status, int]


HEALTH: Answers = {
    200: {"description": "A replica is ready, or comes when it is needed", "model": Health},
    "4XX": PROBLEMS["4XX"],
    503: {"description": "None is ready, or nobody can tell", "model": Health | Problem},
}


def of_type(description: str, *media_types: str) -> Answers:
    """A success with a body of one of these types."""
    return {200: {"description": description, "content": {kind: {} for kind in media_types}}}


VIDEO = of_type("The video", *MEDIA_TYPES.values())
"""A finished video."""

JOB: Answers = {200: {"description": "The job's record", "model": JobRecord}}
FINISHED: Answers = {200: {**VIDEO[200], "model": FinishedRecord, "description": "Its record"}}

METRICS = of_type("Prometheus' text format", "text/plain")
