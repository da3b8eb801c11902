"""Messages of gRPC as what HTTP would have been sent."""

from __future__ import annotations

import base64
import math
from dataclasses import replace
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict, ParseDict

from warpcache_ray.config import Limits
from warpcache_ray.errors import GenerationFailed, InvalidRequest, PayloadTooLarge
from warpcache_ray.rpc import videos_pb2 as pb
from warpcache_ray.serving import lifecycle, messages
from warpcache_ray.serving.delivery import public
from warpcache_ray.serving.lifecycle import Delivery, Job
from warpcache_ray.serving.schemas import FollowedRequest
from warpcache_ray.store.events import Event

ROOM = Limits(body_bytes=1000, image_bytes=3000)
WHOLE = {
    "prompt": "a cat",
    "negative_prompt": "",
    "height": 32,
    "width": 48,
    "num_frames": 9,
    "num_inference_steps": 4,
    "guidance_scale": 4.5,
    "seed": 2**63 - 1,
    "fps": 8,
    "policy": {"name": "interval", "every": 3, "warmup": 0, "gains": [1, 0.5], "on": True},
    "quality_floor": "fast",
    "priority": "high",
    "deadline_s": 60.5,
    "output_format": "webm",
    "webhook_url": "https://example.org/hook",
    "lora": "ink",
    "lora_scale": -1.0,
    "cancel_on_disconnect": True,
}


def sent(fields: dict[str, Any]) -> pb.GenerateRequest:
    """The message of a client that writes these."""
    return pb.GenerateRequest.FromString(
        ParseDict(fields, pb.GenerateRequest()).SerializeToString()
    )


@pytest.mark.parametrize(
    "fields",
    [
        WHOLE,
        {"prompt": "a"},
        {"prompt": "a", "quality": "exact"},
        {"prompt": "a", "quality": 0.95},
        {"prompt": "a", "policy": "never", "seed": 0},
        {"prompt": "a", "policy": None},
    ],
    ids=["whole", "least", "named quality", "SSIM", "named policy", "null"],
)
def test_a_message_is_what_json_would_be(fields: dict[str, Any]) -> None:
    """To the last digit of a seed; whole numbers of a policy stay whole; what isn't set is left to the service."""
    found = messages.asked(sent(fields), ROOM)
    assert found == FollowedRequest.model_validate(fields)
    assert found.model_dump(exclude_unset=True) == fields


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_a_number_is_finite(number: float) -> None:
    """JSON has no other ones."""
    for name in messages.OPEN:
        request = pb.GenerateRequest(prompt="a")
        getattr(request, name).number_value = number
        with pytest.raises(InvalidRequest, match=f"{name}: ") as refused:
            messages.asked(request, ROOM)
        assert refused.value.param == name


def test_an_image_is_a_file_or_where_it_is() -> None:
    """Its bytes as they are; of the two the one that was set last."""
    asked = messages.asked(pb.GenerateRequest(prompt="a", image_file=b"\x89PNG"), ROOM)
    assert asked.reference is not None
    assert asked.reference.data == b"\x89PNG"
    asked = messages.asked(pb.GenerateRequest(prompt="a", image_url="https://a.example/b"), ROOM)
    assert asked.reference is not None
    assert asked.reference.url == "https://a.example/b"


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        ({}, "prompt", "prompt is missing"),
        ({"prompt": " "}, "prompt", r"prompt = ' ': must not be blank"),
        ({"prompt": "a", "height": -16}, "height", "height = -16: .* greater than or equal to 16"),
        ({"prompt": "a", "priority": "urgent"}, "priority", "'high', 'normal' or 'low'"),
        ({"prompt": "a", "quality": "best"}, "quality", "quality = 'best'"),
        ({"prompt": "a", "quality": [1]}, "quality", "quality = "),
        ({"prompt": "a", "policy": 3}, "policy", "policy = 3"),
        ({"prompt": "a", "image_file": ""}, "image", "it must be a file, or the URL of one"),
    ],
)
def test_it_is_refused_as_json_would_be(fields: dict[str, Any], param: str, said: str) -> None:
    """With field, value and what is allowed."""
    with pytest.raises(InvalidRequest, match=said) as refused:
        messages.asked(sent(fields), ROOM)
    assert refused.value.param == param


@pytest.mark.parametrize("form", ["image_file", "image_url"])
def test_only_an_image_may_be_large(form: str) -> None:
    """It has a bound of its own, the rest another."""

    def with_image(size: int) -> pb.GenerateRequest:
        data = bytes(size)
        url = f"data:image/png;base64,{base64.b64encode(data).decode()}"
        image: Any = {form: data if form == "image_file" else url}
        return pb.GenerateRequest(prompt="a", **image)

    asked = messages.asked(with_image(3000), ROOM)
    assert asked.reference is not None
    assert asked.reference.data == bytes(3000)
    with pytest.raises(PayloadTooLarge, match="image: 3001 bytes; at most 3000 are") as refused:
        messages.asked(with_image(3001), ROOM)
    assert refused.value.param == "image"


def test_the_rest_is_bounded_too() -> None:
    """Also where an image is somewhere else, whose address counts."""
    for large in (
        {"prompt": "a" * 2000},
        {"prompt": "a", "image_url": f"https://a.example/{'b' * 2000}"},
    ):
        with pytest.raises(PayloadTooLarge, match="at most 1000 are allowed") as refused:
            messages.asked(pb.GenerateRequest(**large), ROOM)
        assert refused.value.param == "body"


LONG = {"epoch", "seed", "version"}
"""Fields that JSON of protobuf's has as texts."""


def plain(message: pb.Job) -> dict[str, Any]:
    """The record that a message tells of, as HTTP would."""
    told = MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    for part in (told, told["policy_origin"]):
        part |= {name: int(part[name]) for name in LONG & set(part)}
    return told


def there(record: dict[str, Any]) -> dict[str, Any]:
    """A record without what it hasn't got."""
    return {name: value for name, value in record.items() if value is not None}


def test_a_record_is_https() -> None:
    """All of it, one that succeeded and one that failed: texts, counts, times, what isn't there."""
    origin = {"source": "registry", "quality": 0.9, "slot": "a", "version": 7, "why": ""}
    request = {"prompt": "a", "seed": 7, "output_format": "mp4", "guidance_scale": 4.5}
    job = Job("job_1", request, {"name": "never"}, 1700000000.25, policy_origin=origin)
    job = replace(lifecycle.claim(job, "r1", 3, 1700000003.5), webhook=Delivery(last_error="no"))
    made = lifecycle.succeed(job, 1, {"path": "/v.mp4", "timings": {"text": 0.5}}, 1700000009.0)
    lost = lifecycle.fail(job, 1, GenerationFailed("no paint").to_dict(), 1700000009.0)
    for ended in (made, lost):
        shown = public(ended.to_dict() | {"queue_position": None, "eta_s": 2.5}) | {"seed": 7}
        shown["webhook"] = there(shown["webhook"])
        shown["error"] = shown["error"] and there(shown["error"])
        assert plain(messages.record(shown)) == there(shown)


def test_a_seed_has_all_its_digits() -> None:
    """More than a double has."""
    job = Job("job_1", {"prompt": "a", "seed": 2**63 - 1}, {"name": "never"}, 1.0)
    assert messages.record(job.to_dict()).seed == 2**63 - 1


def test_an_event_has_data_or_at_the_end_the_record() -> None:
    """Under the kind and the id that server-sent ones have."""
    step = messages.event("job_1", Event("step", {"step": 2, "cache": {"reused": 1}}, "5-0"))
    assert (step.job_id, step.id, step.kind) == ("job_1", "5-0", "step")
    assert MessageToDict(step.data) == {"step": 2, "cache": {"reused": 1}}
    assert not step.HasField("job")
    job = Job("job_1", {"prompt": "a", "seed": 7}, {"name": "never"}, 1.0)
    end = messages.event("job_1", Event("cancelled", job.to_dict(), "6-0"))
    assert (end.job.id, end.HasField("data")) == ("job_1", False)
