"""The image that a request brings: as clients send it, and how it becomes an artifact of the job."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from dataclasses import dataclass
from typing import Annotated, Any

from PIL.Image import Image
from pydantic import PlainSerializer, PlainValidator, WithJsonSchema

from warpcache_ray.config import ServiceConfig
from warpcache_ray.errors import InvalidRequest, PayloadTooLarge
from warpcache_ray.image import fit, read_image, to_png
from warpcache_ray.serving.artifacts import Artifacts
from warpcache_ray.serving.outbound import Outbound

NAME = "image.png"
"""What the artifact is called."""
AT_ONCE = 2
"""How many images are decoded side by side: each takes a few bytes a pixel."""

_ALLOWED = "it must be a file, or the URL of one (data:…;base64,… or https://…)"


@dataclass(frozen=True, slots=True)
class Reference:
    """An image file's bytes, or where they are."""

    data: bytes = b""
    url: str = ""

    @property
    def known_by(self) -> dict[str, str]:
        """What tells two references apart, without the bytes."""
        return {"url": self.url} if self.url else {"sha256": hashlib.sha256(self.data).hexdigest()}


def _read(given: Any) -> Reference | None:
    if given is None or isinstance(given, Reference):
        return given
    if isinstance(given, dict):
        parts = {name: value for name, value in given.items() if value is not None}
        if set(parts) != {"image_url"}:
            raise ValueError("it must be an object with image_url alone")
        given = parts["image_url"]
    if isinstance(given, str) and given.startswith("data:"):
        given = _decoded(given)
    if isinstance(given, bytes) and given:
        return Reference(data=given)
    if isinstance(given, str) and given:
        return Reference(url=given)
    raise ValueError(_ALLOWED)


def _decoded(url: str) -> bytes:
    head, _, body = url.partition(",")
    if not head.endswith(";base64"):
        raise ValueError(_ALLOWED)
    try:
        return base64.b64decode(body, validate=True)
    except ValueError as error:
        raise ValueError(f"what follows base64, is not that ({error})") from None


_SCHEMA = {
    "description": f"The image that the video begins with (PNG, JPEG or WebP): {_ALLOWED}.",
    "anyOf": [
        {"type": "string"},
        {
            "type": "object",
            "properties": {"image_url": {"type": "string"}},
            "required": ["image_url"],
        },
        {"type": "null"},
    ],
}

ImageField = Annotated[
    Reference | None,
    PlainValidator(_read),
    PlainSerializer(lambda reference: reference and reference.known_by),
    WithJsonSchema(_SCHEMA),
]
"""A request's field for an image. What a request is known by has the image's fingerprint."""


def takes_images(info: dict[str, Any]) -> bool:
    """Whether the model of a replica that tells `info` makes videos from images (an older version doesn't tell)."""
    return info.get("takes_image") in ("optional", "required")


def check_reference(reference: Reference | None, param: str, info: dict[str, Any]) -> None:
    """The model takes an image where there is one, and needs none where there isn't.

    Raises:
        InvalidRequest: names the field.
    """
    if reference is not None and not takes_images(info):
        said = f"{param} is not supported: this model makes videos from a prompt alone"
        raise InvalidRequest(said, param)
    if reference is None and info.get("takes_image") == "required":
        raise InvalidRequest(f"{param} is missing: this model makes videos from an image", param)


def check_bytes(data: bytes, param: str, most: int) -> None:
    """An image's file has `most` bytes.

    Raises:
        PayloadTooLarge: it has more; `param` is the field that it came in.
    """
    if len(data) > most:
        raise PayloadTooLarge(f"{param}: {len(data)} bytes; at most {most} are allowed", param)


class Images:
    """Takes images in, and keeps each beside its job."""

    def __init__(self, config: ServiceConfig, outbound: Outbound) -> None:
        self._limits = config.model.limits
        self._artifacts = Artifacts(config.artifacts)
        self._outbound = outbound
        self._decoding = asyncio.Semaphore(AT_ONCE)

    async def take(
        self, job_id: str, reference: Reference, param: str, size: tuple[int, int] | None
    ) -> dict[str, Any]:
        """Keeps the image as PNG, filling `size` (width, height) where that is known, else no larger than videos may
        be. What the job's record tells of it.

        Raises:
            InvalidRequest: it can't be had, isn't one, or is too large; `param` is the field that it came in.
            StorageFailed: it can't be kept.
        """
        data, most = reference.data, self._limits.image_bytes
        if reference.url:
            data, _ = await self._outbound.fetch(reference.url, param, most)
        check_bytes(data, param, most)
        async with self._decoding:
            image = await asyncio.to_thread(self._normalised, data, param, size)
        return await asyncio.to_thread(self._keep, job_id, image)

    def url(self, job_id: str) -> str:
        """Where the job's image is."""
        return self._artifacts.artifact(job_id, NAME).url

    async def forget(self, job_id: str) -> None:
        """For a job that isn't made."""
        await asyncio.to_thread(self._artifacts.forget, job_id)

    def _normalised(self, data: bytes, param: str, size: tuple[int, int] | None) -> Image:
        image = read_image(data, param, self._limits.image_pixels)
        if size is None:
            # The pipeline has a size of its own, and stretches the image to that.
            image.thumbnail((self._limits.width, self._limits.height))
            return image
        return fit(image, *size)

    def _keep(self, job_id: str, image: Image) -> dict[str, Any]:
        png = to_png(image)
        self._artifacts.write(job_id, NAME, png)
        return {
            "sha256": hashlib.sha256(png).hexdigest(),
            "media_type": "image/png",
            "bytes": len(png),
            "width": image.width,
            "height": image.height,
        }
