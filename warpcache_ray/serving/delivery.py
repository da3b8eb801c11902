"""How a finished video reaches who asks for it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from fastapi.responses import FileResponse, Response, StreamingResponse

from warpcache_ray.errors import ArtifactGone
from warpcache_ray.serving.artifacts import Artifact


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
