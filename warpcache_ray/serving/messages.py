"""What stands in gRPC's messages, as HTTP has it: requests to fields that are validated, records and events back."""

from __future__ import annotations

import json
from typing import Any

from google.protobuf.json_format import MessageToDict, Parse
from google.protobuf.struct_pb2 import Value
from pydantic import ValidationError

from warpcache_ray.config import Limits
from warpcache_ray.errors import InvalidRequest, PayloadTooLarge
from warpcache_ray.rpc import videos_pb2 as pb
from warpcache_ray.serving.delivery import public
from warpcache_ray.serving.lifecycle import TERMINAL
from warpcache_ray.serving.problems import refusal
from warpcache_ray.serving.references import check_bytes
from warpcache_ray.serving.schemas import FollowedRequest
from warpcache_ray.store.events import Event

OPEN = ("policy", "quality")
"""Fields of more than one type."""


def asked(request: pb.GenerateRequest, limits: Limits) -> FollowedRequest:
    """The request that a message stands for, validated as HTTP's; an image in it may have `limits.image_bytes`, the
    rest `limits.body_bytes`.

    Raises:
        InvalidRequest: names the field, the value and what is allowed.
        PayloadTooLarge: the image, or the rest.
    """
    rest, most = request.ByteSize() - _image_bytes(request), limits.body_bytes
    if rest > most:
        said = (
            f"the message is too large: {rest} bytes without an image; at most {most} are allowed"
        )
        raise PayloadTooLarge(said, "body")
    # Only what was set: the rest is the service's to choose.
    given = {field.name: value for field, value in request.ListFields()}
    given |= {name: _open(name, given[name]) for name in OPEN if name in given}
    image = request.WhichOneof("image")
    if image is not None:
        given["image"] = given.pop(image)
    try:
        found = FollowedRequest.model_validate(given)
    except ValidationError as error:
        raise refusal(error, FollowedRequest) from error
    if found.image is not None:
        check_bytes(found.image.data, "image", limits.image_bytes)
    return found


def _image_bytes(request: pb.GenerateRequest) -> int:
    """What an image takes of a message that has it in itself."""
    url = request.image_url
    return len(url.encode()) if url.startswith("data:") else len(request.image_file)


def _open(name: str, value: Value) -> Any:
    try:
        return _whole(MessageToDict(value))
    except ValueError as error:
        # Of numbers, JSON has the finite ones alone.
        raise InvalidRequest(f"{name}: {error}", name) from error


def _whole(value: Any) -> Any:
    """JSON without a fraction where there is none: all numbers of a message's open fields are doubles."""
    if isinstance(value, dict):
        return {name: _whole(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_whole(part) for part in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def record(job: dict[str, Any]) -> pb.Job:
    """A job's record as a message."""
    told = public(job) | {"seed": job["request"]["seed"]}
    message = pb.Job()
    Parse(json.dumps(told), message, ignore_unknown_fields=True)
    return message


def event(job_id: str, happened: Event) -> pb.Event:
    """Something that happened to a job as a message."""
    told = pb.Event(job_id=job_id, id=happened.id, kind=happened.kind)
    if happened.kind in TERMINAL:
        told.job.CopyFrom(record(happened.data))
    else:
        told.data.update(happened.data)
    return told
