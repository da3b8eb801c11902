"""The OpenAI videos protocol under `/v1`: the same jobs as those of `/generate`, for clients written for others."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.datastructures import UploadFile

from warpcache_ray.errors import JobNotReady, NotFound
from warpcache_ray.media import MEDIA_TYPES
from warpcache_ray.serving import answers, problems, videos_schema
from warpcache_ray.serving.delivery import deliver
from warpcache_ray.serving.idempotency import IdempotencyKey, once
from warpcache_ray.serving.lifecycle import TERMINAL
from warpcache_ray.serving.videos_schema import STATUSES, VideoRequest
from warpcache_ray.video import spritesheet, thumbnail

if TYPE_CHECKING:
    from warpcache_ray.serving.ingress import Service

POLL_MS = 500
"""The openai client keeps to the first that it is told until the video is there."""

PREVIEWS = {"thumbnail": (thumbnail, "image/webp"), "spritesheet": (spritesheet, "image/jpeg")}

CONTENT = answers.of_type(
    "The video or its preview", *MEDIA_TYPES.values(), *(kind for _, kind in PREVIEWS.values())
)

_SCHEMA = {"schema": VideoRequest.model_json_schema()}
_KINDS = {kind: _SCHEMA for kind in ("application/json", *problems.FORMS)}
_BODY = {"requestBody": {"required": True, "content": _KINDS}}


def routes(service: Service) -> APIRouter:
    """All routes of the protocol."""
    router = APIRouter(prefix="/v1")
    _add_creation(router, service)
    _add_videos(router, service)
    _add_content(router, service)
    _add_models(router, service)
    return router


def _add_creation(router: APIRouter, service: Service) -> None:
    @router.post("/videos", openapi_extra=_BODY)
    async def create(request: Request, key: IdempotencyKey = None) -> Response:
        """Takes a video in, as JSON or as a form; answers with its id at once."""
        try:
            asked = VideoRequest.model_validate(
                await _body(request, service.config.model.limits.body_bytes)
            )
        except ValidationError as error:
            raise problems.refusal(error, VideoRequest) from error
        videos_schema.check_model(asked.model, service.config)
        job = await service.submit(asked, once(key, service.caller.name, "/v1/videos", asked))
        return _answer(service, job, request)


async def _body(request: Request, most: int) -> Any:
    if request.headers.get("content-type", "").startswith(problems.FORMS):
        # How large all parts may be was checked before.
        async with request.form(max_part_size=sys.maxsize) as form:
            items = [(name, await _content(part)) for name, part in form.multi_items()]
        texts = '"'.join(part for _, part in items if isinstance(part, str))
        problems.check_rest(texts.encode(errors="replace"), most)
        return videos_schema.unfold(videos_schema.form_fields(items))
    try:
        body = json.loads(await request.body())
    except (ValueError, RecursionError) as error:
        broken = {"type": "json_invalid", "loc": ("body",), "ctx": {"error": str(error)}}
        raise RequestValidationError([broken]) from error
    return videos_schema.unfold(body) if isinstance(body, dict) else body


async def _content(part: str | UploadFile) -> str | bytes:
    return part if isinstance(part, str) else await part.read()


def _answer(service: Service, job: dict[str, Any], request: Request) -> JSONResponse:
    headers = {} if job["status"] in TERMINAL else {"openai-poll-after-ms": str(POLL_MS)}
    body = videos_schema.video(job, service.config, str(request.base_url))
    return JSONResponse(body, headers=headers)


async def _about(service: Service, method: str, video_id: str) -> Any:
    job_id = videos_schema.job_id(video_id)
    try:
        return await service.ask(method, job_id)
    except NotFound as error:
        raise videos_schema.unknown(video_id) from error


def _add_videos(router: APIRouter, service: Service) -> None:
    @router.get("/videos")
    async def page(
        request: Request,
        after: str | None = None,
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
        order: Literal["asc", "desc"] = "desc",
    ) -> dict[str, Any]:
        """Videos by time of creation, those that follow `after`."""
        try:
            last = videos_schema.job_id(after) if after is not None else None
            jobs, more = await service.ask(
                "page", service.caller.owner, last, limit, order == "desc"
            )
        except NotFound as error:
            raise NotFound(f"after = {after!r} is unknown (or expired)", "after") from error
        data = [videos_schema.video(job, service.config, str(request.base_url)) for job in jobs]
        ends = (data[0]["id"], data[-1]["id"]) if data else (None, None)
        return {
            "object": "list",
            "data": data,
            "first_id": ends[0],
            "last_id": ends[1],
            "has_more": more,
        }

    @router.get("/videos/{video_id}")
    async def retrieve(video_id: str, request: Request) -> JSONResponse:
        """The video's state; 200 also for one that has failed."""
        return _answer(service, await _about(service, "get", video_id), request)

    @router.delete("/videos/{video_id}")
    async def delete(video_id: str) -> dict[str, Any]:
        """Removes a video that has ended, with its file. Any other is cancelled, and `deleted` is false: its state can
        still be asked for."""
        deleted = await _about(service, "remove", video_id)
        return {"id": video_id, "object": "video.deleted", "deleted": deleted}


def _add_content(router: APIRouter, service: Service) -> None:
    @router.get("/videos/{video_id}/content", response_class=Response, responses=CONTENT)
    async def content(
        video_id: str, variant: Literal["video", "thumbnail", "spritesheet"] = "video"
    ) -> Response:
        """The finished video, or a still preview of it."""
        job = await _about(service, "get", video_id)
        found = await service.video(job)
        if found is None:
            state = STATUSES[job["status"]]
            raise JobNotReady(f"video {video_id!r} is {state}; it has no content", "video_id")
        if variant == "video":
            return await deliver(found, MEDIA_TYPES[job["request"]["output_format"]])
        draw, media_type = PREVIEWS[variant]
        image = await asyncio.to_thread(lambda: draw(found.read()))
        return Response(image, media_type=media_type)


def _add_models(router: APIRouter, service: Service) -> None:
    config, began = service.config, int(time.time())

    @router.get("/models")
    async def models() -> dict[str, Any]:
        """The one model that is served; `model` may be its `id` or its `root`."""
        model = {"id": config.name, "object": "model", "created": began}
        model |= {"owned_by": "warpcache-ray", "root": config.model.path}
        return {"object": "list", "data": [model]}

    @router.get("/model_info")
    async def model_info() -> dict[str, Any]:
        """Which model that is, in SGLang's words."""
        return {"model_path": config.model.path}
