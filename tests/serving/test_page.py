"""The page and the API's description as a browser gets them; the page itself is tried in test_browser.py."""

from __future__ import annotations

import re
from dataclasses import replace
from urllib.parse import urljoin

import httpx
import pytest

from warpcache_ray.access_config import AccessConfig, ApiKey, digest
from warpcache_ray.config import ModelConfig, ServiceConfig
from warpcache_ray.page_config import PageConfig
from warpcache_ray.serving.ingress import build_api
from warpcache_ray.serving.page import FOLDER, PAGES

CONFIG = ServiceConfig(ModelConfig("toy", device="cpu"))
KEYS = AccessConfig((ApiKey("me", digest("secret")),))
SOURCES = sorted(path for path in FOLDER.iterdir() if path.suffix in (".html", ".js", ".css"))


def client(root: str = "", **changes: object) -> httpx.AsyncClient:
    """Of a service of which only what needs no coordinator is asked."""
    transport = httpx.ASGITransport(build_api(replace(CONFIG, **changes), None), root_path=root)
    return httpx.AsyncClient(transport=transport, base_url="http://test")


@pytest.mark.parametrize("root", ["", "/toyworld"])
@pytest.mark.parametrize("path", PAGES)
async def test_all_that_a_page_is_made_of_is_there(path: str, root: str) -> None:
    """Without a key and under any prefix, the page, its scripts (and what these import), styles and pictures are found
    from where its base says they are."""
    async with client(root, access=KEYS) as browser:
        page = await browser.get(f"{root}{path}")
        assert page.status_code == 200
        base = re.search(r'<base href="([^"]+)"', page.text).group(1)
        todo = [
            urljoin(base, found) for found in re.findall(r'(?:src|href)="(page/[^"]+)"', page.text)
        ]
        assert len(todo) >= 3
        for url in todo:
            file = await browser.get(url)
            assert file.status_code == 200, url
            todo += {urljoin(url, name) for name in re.findall(r'from "(\./[^"]+)"', file.text)} - {
                *todo
            }


@pytest.mark.parametrize("path", PAGES)
async def test_nothing_else_may_run_in_a_page(path: str) -> None:
    """Its policy allows scripts and requests of this service alone, and no other page to frame it; no script stands in
    the page itself."""
    async with client() as browser:
        page = await browser.get(path)
    policy = dict(
        part.split(" ", 1) for part in page.headers["content-security-policy"].split("; ")
    )
    assert policy["default-src"] == policy["frame-ancestors"] == "'none'"
    assert policy["script-src"] == policy["connect-src"] == "'self'"
    assert page.headers["x-content-type-options"] == "nosniff"
    assert re.findall(r"<script(?![^>]* src=)|\son\w+=|\sstyle=", page.text) == []


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_no_source_names_another_host(source) -> None:
    """But for the name space of SVG."""
    named = re.findall(r"(?:https?:)?//[a-z0-9-]+\.[a-z][^\s\"')]*", source.read_text())
    assert [name for name in named if name != "http://www.w3.org/2000/svg"] == []


def test_every_field_of_the_page_has_a_label() -> None:
    """As screen readers need it; what is drawn by scripts is checked in the browser."""
    page = (FOLDER / "index.html").read_text()
    fields = set(re.findall(r'<(?:input|textarea|progress)[^>]* id="([^"]+)"', page))
    assert len(fields) > 10
    assert fields == set(re.findall(r'<label[^>]* for="([^"]+)"', page))


async def test_the_showcase_is_what_the_operator_gave() -> None:
    """Prompts and a front, for those with a key; without any, nothing."""
    given = PageConfig(("a red square",), "bench/results/toyworld-wan/bench.json")
    async with client(access=KEYS, page=given) as browser:
        assert (await browser.get("/showcase")).status_code == 401
        shown = (await browser.get("/showcase", headers={"x-api-key": "secret"})).json()
    assert shown["prompts"] == ["a red square"]
    assert (shown["front"]["steps"], shown["front"]["prompts"]) == (50, 32)
    assert min(shown["front"]["methods"]["auto"])[0] < 10
    async with client() as browser:
        assert (await browser.get("/showcase")).json() == {"prompts": [], "front": None}
