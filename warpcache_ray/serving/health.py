"""`/health`: for whoever decides whether requests may come."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from warpcache_ray import __version__
from warpcache_ray.serving import answers


def routes(ask: Callable[[str], Awaitable[Any]]) -> APIRouter:
    """The route, over the coordinator's methods."""
    router = APIRouter()

    @router.get("/health", responses=answers.HEALTH)
    async def health() -> JSONResponse:
        """200 while a replica was heard of lately (it tells of its steps, or asks for work) or comes when it is needed,
        else 503; with the number of jobs by status."""
        found = await ask("health")
        ready = found["model"] is not None
        awake = "ok" if found["replicas"] else "asleep"
        body = {
            "status": awake if ready else "starting",
            "version": __version__,
            "replicas": len(found["replicas"]),
            "jobs": found["jobs"],
        }
        return JSONResponse(body, 200 if ready else 503)

    return router
