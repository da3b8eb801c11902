"""Images in requests: how they may be given, and what becomes of them."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError
from test_outbound import OPEN, response, serving

from warpcache_ray.config import Limits, ModelConfig, ServiceConfig
from warpcache_ray.errors import InvalidRequest, PayloadTooLarge
from warpcache_ray.serving.artifacts import Artifacts
from warpcache_ray.serving.idempotency import once
from warpcache_ray.serving.outbound import Outbound
from warpcache_ray.serving.references import NAME, Images, Reference, check_reference
from warpcache_ray.serving.schemas import GenerateRequest
from warpcache_ray.serving.videos_schema import VideoRequest

LIMITS = Limits(height=64, width=64, image_bytes=100_000, image_pixels=10_000)


def png(width: int = 48, height: int = 32, color: str = "red") -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (width, height), color).save(data, "PNG")
    return data.getvalue()


def data_url(data: bytes, head: str = "data:image/png;base64,") -> str:
    return head + base64.b64encode(data).decode()


@pytest.mark.parametrize(
    "head",
    ["data:image/png;base64,", "data:;base64,", "data:image/svg+xml;charset=utf-8;base64,"],
)
def test_data_urls(head):
    """Their bytes count, whatever they are said to be; text or an object, as images are given elsewhere too."""
    for given in (data_url(b"bytes", head), {"image_url": data_url(b"bytes", head)}):
        assert VideoRequest(prompt="a", input_reference=given).reference == Reference(b"bytes")
        assert GenerateRequest(prompt="a", image=given).reference == Reference(b"bytes")


def test_other_urls_are_kept_as_they_are():
    """Nothing is fetched before the rest of the request is known to be right."""
    given = {"image_url": "https://example.com/cat.png", "file_id": None}
    reference = VideoRequest(prompt="a", input_reference=given).reference
    assert reference == Reference(url="https://example.com/cat.png")
    assert VideoRequest(prompt="a").reference is None
    assert VideoRequest(prompt="a", input_reference=None).reference is None


HOSTILE = [
    5,
    True,
    [],
    ["data:image/png;base64,AAAA"],
    {},
    {"file_id": "file_1"},
    {"image_url": None},
    {"image_url": {"url": "data:;base64,AAAA"}},
    {"image_url": "data:;base64,AAAA", "file_id": "f"},
    {"image_url": "data:;base64,AAAA", "path": "/etc/passwd"},
    "",
    b"",
    "data:",
    "data:image/png,AAAA",
    "data:image/png;base64,",
    "data:image/png;base64",
    "data:image/png;base64,A",
    "data:image/png;base64,AA\nAA",
    "data:image/png;base64,AA AA",
    "data:image/png;base64,AA-_",
    "data:image/png;base64,ÄÄÄÄ",
    "data:image/png;base64,\ud800",
    "data:" + ";a=b" * 100_000,
    "data:" + "a" * 100_000 + "/",
]


@pytest.mark.parametrize("given", HOSTILE, ids=lambda value: repr(value)[:40])
def test_what_is_no_image_is_refused(given):
    """By its field's name."""
    for kind, field in ((VideoRequest, "input_reference"), (GenerateRequest, "image")):
        with pytest.raises(ValidationError) as caught:
            kind.model_validate({"prompt": "a", field: given})
        assert [error["loc"] for error in caught.value.errors()] == [(field,)]


def test_each_protocol_has_its_name():
    """diffusers' on ours, OpenAI's on theirs."""
    for kind, field in ((VideoRequest, "image"), (GenerateRequest, "input_reference")):
        with pytest.raises(ValidationError, match="Extra inputs"):
            kind.model_validate({"prompt": "a", field: data_url(b"x")})


def test_a_request_is_known_by_its_image():
    """The same bytes are the same request, in base64 or not; others are another one, and so is a URL."""

    def asked(image: object) -> str:
        found = once("k", "c", "/v1/videos", VideoRequest(prompt="a", input_reference=image))
        assert found is not None
        return found.asked

    assert asked(png()) == asked(data_url(png())) == asked({"image_url": data_url(png())})
    others = [png(color="blue"), "https://example.com/1", "https://example.com/2", None]
    assert len({asked(image) for image in [png(), *others]}) == 5


@pytest.mark.parametrize(
    ("takes", "given", "told"),
    [
        ("none", True, "input_reference is not supported"),
        ("none", False, None),
        (None, True, "input_reference is not supported"),
        (None, False, None),
        ("optional", True, None),
        ("optional", False, None),
        ("required", True, None),
        ("required", False, "input_reference is missing"),
    ],
)
def test_models_take_images_or_not(takes, given, told):
    """As their replicas tell; those of an older version don't."""
    info = {} if takes is None else {"takes_image": takes}
    reference = Reference(b"x") if given else None
    if told is None:
        check_reference(reference, "input_reference", info)
        return
    with pytest.raises(InvalidRequest, match=told) as caught:
        check_reference(reference, "input_reference", info)
    assert caught.value.param == "input_reference"


@pytest.fixture
def config(tmp_path: Path) -> ServiceConfig:
    return ServiceConfig(ModelConfig("x", limits=LIMITS), results=str(tmp_path))


def _kept(config: ServiceConfig, job: str = "job_1") -> Image.Image:
    return Image.open(io.BytesIO(Artifacts(config.artifacts).artifact(job, NAME).read()))


@pytest.mark.parametrize(
    ("size", "kept"), [((32, 64), (32, 64)), ((64, 48), (64, 48)), (None, (64, 43))]
)
async def test_an_image_is_kept_beside_its_job(size, kept, config):
    """As large as the video, or as videos may be where the pipeline decides; the record has no pixel of it."""
    told = await Images(config, Outbound(config.outbound)).take(
        "job_1", Reference(png(96, 64)), "image", size
    )
    image = _kept(config)
    data = Artifacts(config.artifacts).artifact("job_1", NAME).read()
    assert (image.format, image.size) == ("PNG", kept)
    assert told == {
        "sha256": hashlib.sha256(data).hexdigest(),
        "media_type": "image/png",
        "bytes": len(data),
        "width": kept[0],
        "height": kept[1],
    }


@pytest.mark.parametrize(
    ("data", "kind", "told"),
    [
        (png(101, 100), PayloadTooLarge, "101×100 pixels"),
        (png() + bytes(100_000), PayloadTooLarge, "at most 100000"),
        (b"GIF89a", InvalidRequest, "PNG, JPEG, WEBP"),
    ],
    ids=["pixels", "bytes", "kind"],
)
async def test_an_image_that_is_refused_is_not_kept(data, kind, told, config):
    """The message names the field and what is allowed."""
    with pytest.raises(kind, match=told) as caught:
        await Images(config, Outbound(config.outbound)).take(
            "job_1", Reference(data), "input_reference", (32, 32)
        )
    assert caught.value.param == "input_reference"
    assert Artifacts(config.artifacts).names("job_1") == []


async def test_several_at_once(config):
    """Each job has its own."""
    images = Images(config, Outbound(config.outbound))
    colors = ["red", "lime", "blue", "white", "black"]
    taken = [
        images.take(f"job_{color}", Reference(png(color=color)), "image", (32, 32))
        for color in colors
    ]
    await asyncio.gather(*taken)
    for color in colors:
        wanted = Image.new("RGB", (32, 32), color)
        assert np.array_equal(np.asarray(_kept(config, f"job_{color}")), np.asarray(wanted))


async def test_an_image_at_a_url(config):
    """It's fetched from hosts that the operator lists, and from no other."""
    async with serving(response(png())) as (port, asked):
        reference = Reference(url=f"http://127.0.0.1:{port}/cat.png")
        listed = replace(config, outbound=replace(OPEN, ports=(port,)))
        await Images(listed, Outbound(listed.outbound)).take("job_1", reference, "image", (32, 32))
        assert _kept(config).size == (32, 32)
        with pytest.raises(InvalidRequest, match="image"):
            await Images(config, Outbound(config.outbound)).take(
                "job_2", reference, "image", (32, 32)
            )
        assert len(asked) == 1


async def test_an_image_at_a_url_is_bounded(config):
    """Like one that is sent."""
    async with serving(response(png() + bytes(100_000))) as (port, _):
        listed = replace(config, outbound=replace(OPEN, ports=(port,)))
        reference = Reference(url=f"http://127.0.0.1:{port}/")
        with pytest.raises(InvalidRequest, match="at most 100000"):
            await Images(listed, Outbound(listed.outbound)).take(
                "job_1", reference, "image", (32, 32)
            )
