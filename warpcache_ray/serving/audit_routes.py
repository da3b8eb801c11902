"""What audits have found, for the operator."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Depends

from warpcache_ray.serving.access import only_admins

if TYPE_CHECKING:
    from warpcache_ray.serving.ingress import Service


def routes(service: Service) -> APIRouter:
    """The route."""
    router = APIRouter()

    @router.get("/admin/audits", dependencies=[Depends(only_admins)])
    async def audits() -> dict[str, Any]:
        """How each version in force stands that was audited (`miss_rate_within` is where its miss rate is, however
        often one looks; `evidence` for its promise being broken or kept), and what came of audits lately, the newest
        first: `missed`, `withdraw`, `promote`, `rollback`, `step_down`."""
        found: dict[str, Any] = await service.ask("upkeep", "audits", "describe")
        return found

    return router
