"""Errors as answers, on an application of one route."""

import json
from collections.abc import AsyncIterator

import httpx
import pytest
from fastapi import FastAPI

from warpcache_ray import errors
from warpcache_ray.serving import problems

LIMIT = 1 << 20
JSON = {"content-type": "application/json"}


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    """POST / takes a JSON object; GET /raise/X raises X."""
    app = FastAPI()
    kinds = {kind.__name__: kind for kind in problems.all_errors()}

    @app.post("/")
    async def size(body: dict[str, str]) -> int:
        return len(body)

    @app.get("/raise/{kind}")
    async def fail(kind: str) -> None:
        raise kinds[kind]("told so", "field")

    problems.install(app, LIMIT)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as open_client:
        yield open_client


def test_the_tree_is_found_whole():
    """All classes of the error module, each once."""
    here = [k for k in vars(errors).values() if isinstance(k, type) and issubclass(k, Exception)]
    assert sorted(map(id, problems.all_errors())) == sorted(map(id, here))


@pytest.mark.parametrize("kind", problems.all_errors(), ids=lambda kind: kind.__name__)
async def test_each_error_has_its_envelope(kind, client):
    """Status, code and parameter of the class; what can be tried again says when."""
    answer = await client.get(f"/raise/{kind.__name__}")
    assert answer.status_code == kind.status
    assert answer.json() == {"error": kind("told so", "field").to_dict()}
    assert ("retry-after" in answer.headers) == kind.retryable


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [("GET", "/nowhere", 404, "not_found"), ("GET", "/", 405, "method_not_allowed")],
)
async def test_routes_that_are_not(method, path, status, code, client):
    """Unknown routes and methods get the envelope too."""
    answer = await client.request(method, path)
    assert answer.status_code == status
    assert answer.json()["error"]["code"] == code
    assert path in answer.json()["error"]["message"]


@pytest.mark.parametrize("body", [b'{"a":', b"\xff\xfe", b"nothing"])
async def test_broken_json(body, client):
    """400, and it says that it's the JSON."""
    answer = await client.post("/", content=body, headers=JSON)
    assert answer.status_code == 400
    assert "not JSON" in answer.json()["error"]["message"]


async def test_an_empty_body_is_named(client):
    """Without a body the answer says what is missing."""
    answer = await client.post("/", headers=JSON)
    assert answer.status_code == 422
    assert "body" in answer.json()["error"]["message"]


async def test_long_values_are_cut(client):
    """An answer doesn't repeat a huge value."""
    answer = await client.post("/", json={"a": [0] * 10_000})
    assert answer.status_code == 422
    assert "a = [0, 0" in answer.json()["error"]["message"]
    assert len(answer.text) < 500


@pytest.mark.parametrize("extra", [0, 1])
@pytest.mark.parametrize("chunked", [False, True], ids=["declared", "chunked"])
async def test_bodies_are_bounded(chunked, extra, client):
    """A body at the limit is taken, one byte more is 413, by content-length or as it arrives."""
    frame = len(json.dumps({"a": ""}))
    body = json.dumps({"a": "x" * (LIMIT - frame + extra)}).encode()

    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 1 << 16):
            yield body[start : start + (1 << 16)]

    answer = await client.post("/", content=chunks() if chunked else body, headers=JSON)
    assert ("content-length" in answer.request.headers) != chunked
    assert answer.status_code == (413 if extra else 200)
    if extra:
        assert answer.json()["error"]["code"] == "payload_too_large"
