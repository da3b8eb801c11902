"""What routes answer beside JSON of their own, as the API's description tells it."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from warpcache_ray.media import MEDIA_TYPES

Answers = dict[int | str, dict[str, Any]]


class Error(BaseModel):
    """What went wrong: `param` names the field, `code` is stable, `retryable` says whether the same request may
    succeed later."""

    message: str
    type: str
    param: str | None
    code: str
    retryable: bool


class Problem(BaseModel):
    """The answer of a request that wasn't served; with `wait`, also the record of the job that failed."""

    error: Error
    job: dict[str, Any] | None = None


PROBLEMS: Answers = {
    "4XX": {"description": "Refused; the error says why", "model": Problem},
    "5XX": {"description": "Failed; the error says whether to try again", "model": Problem},
}


def of_type(description: str, *media_types: str) -> Answers:
    """A success with a body of one of these types."""
    return {200: {"description": description, "content": {kind: {} for kind in media_types}}}


VIDEO = of_type("The video", *MEDIA_TYPES.values())
"""A finished video."""

METRICS = of_type("Prometheus' text format", "text/plain")
