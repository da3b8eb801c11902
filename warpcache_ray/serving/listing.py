"""`GET /jobs`: the caller's jobs, the newest first."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from warpcache_ray.errors import NotFound
from warpcache_ray.serving.answers import JobRecord

if TYPE_CHECKING:
    from warpcache_ray.serving.ingress import Service

Public = Callable[[dict[str, Any], Request], dict[str, Any]]


class Listing(BaseModel):
    """Some of the caller's jobs; without keys everyone's."""

    jobs: list[JobRecord]
    has_more: bool


def routes(service: Service, public: Public) -> APIRouter:
    """The route; `public` makes a record one that may leave the service."""
    router = APIRouter()

    @router.get("/jobs", responses={200: {"model": Listing}})
    async def jobs(
        request: Request, after: str | None = None, limit: Annotated[int, Query(ge=1, le=100)] = 20
    ) -> JSONResponse:
        """Jobs by time of submission, the newest first, those that follow `after`."""
        try:
            found, more = await service.ask("page", service.caller.owner, after, limit, True)
        except NotFound as error:
            raise NotFound(f"after = {after!r} is unknown (or expired)", "after") from error
        return JSONResponse({"jobs": [public(job, request) for job in found], "has_more": more})

    return router
