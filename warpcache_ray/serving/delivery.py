"""How a finished video reaches who asks for it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from fastapi.responses import FileResponse, Response, StreamingResponse

from warpcache_ray.errors import ArtifactGone, JobNotReady
from warpcache_ray.serving.artifacts import Artifact
from warpcache_ray.serving.lifecycle import Status


def public(job: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A record as clients see it, with the path of the job's video below the application's `prefix`."""
    done = job["status"] == Status.SUCCEEDED
    return job | {"video": f"{prefix}/jobs/{job['id']}/video" if done else None}


def ready(job: dict[str, Any], video: Artifact | None) -> Artifact:
    """The job's video.

    Raises:
        JobNotReady: there is none.
    """
    if video is None:
        raise JobNotReady(f"job {job['id']} is {job['status']}; it has no video", "job_id")
    return video


async def deliver(
    video: Artifact, media_type: str, headers: Mapping[str, str] | None = None
) -> Response:
    """The video: a local file whole or in the ranges that are asked for, any other as the storage gives it.

    Raises:
        ArtifactGone: it is no longer there.
        StorageFailed: the storage can't be read.
    """
    path = video.local
    if path is not None:
        if not path.is_file():
            raise ArtifactGone("the video is no longer in the storage")
        return FileResponse(path, media_type=media_type, headers=headers)
    size = await asyncio.to_thread(video.size)
    told = {**(headers or {}), "content-length": str(size)}
    return StreamingResponse(video.chunks(size), media_type=media_type, headers=told)
