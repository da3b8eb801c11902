"""Errors as answers, on an application of few routes."""

import asyncio
import json
from collections.abc import AsyncIterator

import httpx
import pytest
import uvicorn
from fastapi import FastAPI, UploadFile

from warpcache_ray import errors
from warpcache_ray.serving import problems

LIMIT = 1 << 20
JSON = {"content-type": "application/json"}


@pytest.fixture
def app() -> FastAPI:
    """POST / takes a JSON object, POST /form a form; GET /raise/X raises X."""
    app = FastAPI()
    kinds = {kind.__name__: kind for kind in problems.all_errors()}

    @app.post("/")
    async def size(body: dict[str, str]) -> int:
        return len(body)

    @app.post("/form")
    async def form(file: UploadFile) -> int | None:
        return file.size

    @app.get("/raise/{kind}")
    async def fail(kind: str) -> None:
        raise kinds[kind]("told so", "field")

    problems.install(app, LIMIT)
    return app


@pytest.fixture
async def client(app) -> AsyncIterator[httpx.AsyncClient]:
    """A client of it within this process."""
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as open_client:
        yield open_client


@pytest.fixture
async def port(app) -> AsyncIterator[int]:
    """Where it is served over a real connection."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", lifespan="off"))
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    await serving


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


@pytest.mark.parametrize("extra", [0, 1])
async def test_forms_are_bounded(extra, client):
    """As all bodies are, with all that is between their parts."""
    frame = len(client.build_request("POST", "/form", files={"file": b""}).read())
    content = b"x" * (LIMIT - frame + extra)
    answer = await client.post("/form", files={"file": content})
    assert int(answer.request.headers["content-length"]) == LIMIT + extra
    assert answer.status_code == (413 if extra else 200)


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/", "content-type: application/json\r\ntransfer-encoding: chunked"),
        ("/form", "content-type: multipart/form-data; boundary=b\r\ntransfer-encoding: chunked"),
        ("/form", f"content-type: multipart/form-data; boundary=b\r\ncontent-length: {LIMIT + 1}"),
    ],
    ids=["chunked", "chunked form", "declared form"],
)
async def test_whoever_never_ends_is_answered(path, headers, port):
    """As soon as the body is known to be too large: nobody waits for its end, which never comes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"POST {path} HTTP/1.1\r\nhost: x\r\n{headers}\r\n\r\n".encode())
    if "chunked" in headers:
        writer.write(b"%x\r\n%s\r\n" % (LIMIT + 1, b"x" * (LIMIT + 1)))
    async with asyncio.timeout(10):
        assert (await reader.readline()).split()[1] == b"413"
    writer.close()
