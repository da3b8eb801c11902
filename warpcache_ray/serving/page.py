"""The page at `/`, and the API's description as one: files of this package, nothing from elsewhere."""

from __future__ import annotations

import importlib.util
from dataclasses import asdict
from functools import cache
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import HTMLResponse
from fastapi.staticfiles import StaticFiles

from warpcache_ray.page_config import PACKAGE, read_front
from warpcache_ray.serving import fidelity, listing
from warpcache_ray.serving.access import FILES

if TYPE_CHECKING:
    from warpcache_ray.serving.ingress import Service

FOLDER = PACKAGE / "page"

_COMMON = (
    "default-src 'none'; script-src 'self'; connect-src 'self'; base-uri 'self'; "
    "form-action 'none'; frame-ancestors 'none'; media-src 'self' blob:; "
)
STRICT = _COMMON + "style-src 'self'; img-src 'self' data: blob:"
DESCRIBING = _COMMON + "style-src 'self' 'unsafe-inline'; img-src 'self' data:"
"""Swagger UI writes styles into its page."""

PAGES = {"/": ("index.html", STRICT), "/docs": ("docs.html", DESCRIBING)}


def routes(service: Service, public: listing.Public) -> APIRouter:
    """What the page wants to know beside what others ask; `public` makes a record one that may leave the service."""
    router = APIRouter()
    router.include_router(listing.routes(service, public))
    router.include_router(fidelity.routes(service))
    front = read_front(service.config.page)
    shown = {"prompts": service.config.page.prompts, "front": front and asdict(front)}

    @router.get("/showcase")
    async def showcase() -> dict[str, Any]:
        """Example prompts, and the measured speed and quality of the served model, as far as the operator gave them."""
        return shown

    return router


def install(app: FastAPI) -> None:
    """The pages, and the files that they are made of."""
    for path, (file, policy) in PAGES.items():
        app.add_api_route(path, _page(file, policy), include_in_schema=False)
    app.mount(f"{FILES}api", StaticFiles(directory=_vendored()), "api-description")
    app.mount(FILES.rstrip("/"), StaticFiles(directory=FOLDER), "page")


def _page(file: str, policy: str) -> Any:
    async def page(request: Request) -> HTMLResponse:
        # Serve may have the application under a prefix.
        base = escape(request.scope.get("root_path", "") + "/")
        headers = {
            "content-security-policy": policy,
            "x-content-type-options": "nosniff",
            "referrer-policy": "no-referrer",
            "cache-control": "no-cache",
        }
        return HTMLResponse(_text(file).replace("{{base}}", base), headers=headers)

    return page


@cache
def _text(file: str) -> str:
    return (FOLDER / file).read_text()


def _vendored() -> Path:
    """Where Swagger UI is, which `fastapi-offline` carries."""
    found = importlib.util.find_spec("fastapi_offline")
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent / "static"
