"""`GET /jobs/{id}/fidelity`: how near a job's video is to that of another one, which was made uncached."""

from __future__ import annotations

import asyncio
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter
from pydantic import BaseModel, Field

from warpcache_ray.errors import InvalidRequest
from warpcache_ray.serving.artifacts import Artifact
from warpcache_ray.serving.delivery import ready

if TYPE_CHECKING:
    from warpcache_ray.serving.ingress import Service

FRAMES = 33
"""At most so many are compared, evenly spaced: of 161 at 720p all would take a minute."""
SAME = (
    "output_format",
    "prompt",
    "negative_prompt",
    "seed",
    "height",
    "width",
    "num_frames",
    "num_inference_steps",
    "guidance_scale",
    "fps",
    "lora",
    "lora_scale",
    "image",
)
"""What two jobs have in common that differ in nothing but the cache."""


class Fidelity(BaseModel):
    """How near two videos are, as their files have them. Files are compressed with losses: equal latents give equal
    files, but what differs less than the losses (mp4 and webm: beyond about 40 dB) can't be told apart exactly."""

    psnr: float = Field(description="In dB over all frames that were compared; at most 99.")
    ssim: float = Field(description="The mean of those frames.")
    frames: int = Field(description="How many were compared, evenly spaced.")
    num_frames: int = Field(description="How many there are.")
    identical: bool = Field(description="The latents are the same, bit for bit.")


def routes(service: Service) -> APIRouter:
    """The route."""
    router = APIRouter()
    # One at a time: the ingress has requests to answer.
    turn = asyncio.Lock()

    @router.get("/jobs/{job_id}/fidelity")
    async def fidelity(job_id: str, reference: str | None = None) -> Fidelity:
        """PSNR and SSIM of the job's video against that of `reference`, a job that asked for the same."""
        job = await service.ask("get", job_id)
        if reference is None:
            raise InvalidRequest("reference is missing: the id of the uncached job", "reference")
        other = await service.ask("get", reference)
        check_same(job, other)
        urls = [ready(each, await service.video(each)).url for each in (job, other)]
        count = job["result"]["num_frames"]
        async with turn:
            psnr, ssim, frames = await asyncio.to_thread(_compare, *urls, count)
        same = job["result"]["latents_sha256"] == other["result"]["latents_sha256"]
        return Fidelity(psnr=psnr, ssim=ssim, frames=frames, num_frames=count, identical=same)

    return router


def check_same(job: dict[str, Any], reference: dict[str, Any]) -> None:
    """Two jobs ask for the same video.

    Raises:
        InvalidRequest: they don't (names the first difference), or their files don't have all frames.
    """
    ours, theirs = job["request"], reference["request"]
    for name in SAME:
        if ours.get(name) != theirs.get(name):
            raise InvalidRequest(
                f"reference = {reference['id']!r} asked for {name} = {theirs.get(name)!r}; it must be "
                f"{ours.get(name)!r}, as the job's",
                "reference",
            )
    if ours.get("output_format") == "gif":
        # Equal frames that follow each other are one there, and all have 256 colours.
        message = f"job_id = {job['id']!r} is a gif, which can't be compared; mp4, webm and png can"
        raise InvalidRequest(message, "job_id")


@lru_cache(maxsize=256)
def _compare(url: str, reference: str, count: int) -> tuple[float, float, int]:
    # Loads scikit-image, of which only this route has need.
    from warpcache_ray.quality.fidelity import compare
    from warpcache_ray.video import some_frames

    videos = (some_frames(Artifact(each).read(), count, FRAMES) for each in (url, reference))
    return compare(zip(*videos, strict=True))
