"""API keys over a real coordinator: who is let in, what each client sees, how often it may ask."""

import asyncio
import hmac
import json
import logging
import uuid
from dataclasses import replace
from typing import Any

import httpx
import pytest
from hubs import INFO
from openai import AsyncOpenAI, AuthenticationError, PermissionDeniedError, RateLimitError

from warpcache_ray.access_config import AccessConfig, ApiKey, RateLimits, digest
from warpcache_ray.config import Defaults, ModelConfig, ServiceConfig
from warpcache_ray.serving import access
from warpcache_ray.serving.coordinator import Coordinator
from warpcache_ray.serving.ingress import build_api

DEFAULTS = Defaults(height=32, width=32, num_frames=5, num_inference_steps=4, fps=8)
KEYS = {name: f"wc_key-of-{name}" for name in ("alice", "bob", "root")}
ACCESS = AccessConfig(tuple(ApiKey(n, digest(k), admin=n == "root") for n, k in KEYS.items()))
CONFIG = ServiceConfig(ModelConfig("toy", device="cpu", defaults=DEFAULTS), access=ACCESS)
NOBODYS = "job_0123"

API = build_api(CONFIG, None)
ROUTES = [
    (method.upper(), path) for path, kinds in API.openapi()["paths"].items() for method in kinds
]
OF_A_JOB = [(method, path) for method, path in ROUTES if "_id}" in path]


@pytest.fixture
def granted(request) -> AccessConfig:
    """Who may come; a test may ask for another."""
    return getattr(request, "param", ACCESS)


@pytest.fixture
def hub(store_server, granted) -> Coordinator:
    return Coordinator(uuid.uuid4().hex, replace(CONFIG, access=granted), store_server)


def as_(name: str) -> dict[str, str]:
    return {"x-api-key": KEYS[name]}


def openai_of(name: str, client: httpx.AsyncClient) -> AsyncOpenAI:
    """OpenAI's own client with a key of ours."""
    base = {"base_url": "http://test/v1", "http_client": client, "max_retries": 0}
    return AsyncOpenAI(api_key=KEYS.get(name, name), **base)


def url(path: str, job_id: str) -> str:
    """A route's path with a job's id, under the name that the route's protocol has for it, or with a policy's slot."""
    video_id = job_id.replace("job_", "video_")
    return path.format(job_id=job_id, video_id=video_id, slot="default-0123456789abcdef")


async def send(
    client: httpx.AsyncClient, method: str, path: str, name: str, job_id: str
) -> tuple[int, str]:
    """Status and body, in which no id stands."""
    # Events of a job at work would go on and on.
    async with asyncio.timeout(10):
        answer = await client.request(method, url(path, job_id), headers=as_(name))
    return answer.status_code, answer.text.replace(job_id.split("_")[1], "ID")


async def job_of(client: httpx.AsyncClient, name: str, **fields: Any) -> dict[str, Any]:
    """A new job of a client's."""
    answer = await client.post("/generate", json={"prompt": "a"} | fields, headers=as_(name))
    assert answer.status_code == 200, answer.text
    job: dict[str, Any] = answer.json()
    return job


async def finish(hub: Coordinator, path: Any) -> None:
    """The replica makes the next job's video."""
    path.write_bytes(b"a video")
    attempt = await hub.claim("replica_1", INFO, 5.0)
    result = {"path": str(path), "latents_sha256": "0"}
    assert await hub.finish(attempt["job_id"], attempt["fence"], result, None)


@pytest.mark.parametrize(("method", "path"), ROUTES, ids=str)
async def test_every_route_wants_a_key(method, path, client):
    """But those that are open say so; and the API's description tells of each which it is."""
    described = API.openapi()["paths"][path][method.lower()].get("security")
    if path in access.OPEN:
        assert (await client.request(method, path)).status_code == 200
        assert described is None
        return
    assert described == [{"APIKeyHeader": []}, {"HTTPBearer": []}]
    wrong = [{"x-api-key": "wc_x"}, {"authorization": "Bearer wc_x"}]
    wrong += [{"authorization": f"Basic {KEYS['alice']}"}, {"x-api-key": digest(KEYS["alice"])}]
    for headers in ({}, *wrong):
        answer = await client.request(method, url(path, NOBODYS), headers=headers)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        error = answer.json()["error"]
        assert (error["code"], error["type"]) == ("invalid_api_key", "Unauthenticated")


async def test_what_is_not_a_route_wants_a_key_too(client):
    """So does whatever is added one day."""
    assert (await client.get("/nowhere")).status_code == 401
    assert (await client.get("/nowhere", headers=as_("alice"))).status_code == 404
    for path in access.OPEN:
        assert (await client.get(path)).status_code == 200


@pytest.mark.parametrize("header", ["x-api-key", "authorization"])
async def test_a_key_is_sent_in_either_way(header, client):
    """Its own header, or as OpenAI's clients do."""
    prefix = "Bearer " if header == "authorization" else ""
    headers = {header: prefix + KEYS["alice"]}
    assert (await client.get("/policies", headers=headers)).status_code == 200


async def test_a_body_is_not_read_before_the_key_is_known():
    """Whoever has none can't have the service keep its bytes."""

    async def receive() -> Any:
        pytest.fail("it was read")

    sent: list[Any] = []

    async def note(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/generate", "headers": []}
    await API(scope | {"query_string": b""}, receive, note)
    assert sent[0]["status"] == 401


async def test_under_a_prefix(hub, api_of):
    """Where Serve has the application under a route prefix, the same routes are open."""
    transport = httpx.ASGITransport(api_of(hub), root_path="/wan")
    async with httpx.AsyncClient(transport=transport, base_url="http://test/wan") as client:
        await hub.claim("replica_1", INFO, 0.01)
        assert (await client.get("/health")).status_code == 200
        assert (await client.get("/models")).status_code == 401
        assert (await client.get("/models", headers=as_("bob"))).status_code == 200
        assert (await client.get("/wan/health")).status_code == 401


@pytest.mark.parametrize("ended", [False, True], ids=["queued", "ended"])
@pytest.mark.parametrize(("method", "path"), OF_A_JOB, ids=str)
async def test_others_jobs_are_unknown(method, path, ended, client, hub, tmp_path):
    """Bob's answer for Alice's job is the one for a job that never was, and nothing happens to hers; she and an admin
    get another."""
    job = await job_of(client, "alice")
    if ended:
        await finish(hub, tmp_path / "video.mp4")
    before = await hub.get(job["id"])
    seen = await send(client, method, path, "bob", job["id"])
    assert seen == await send(client, method, path, "bob", NOBODYS)
    assert seen[0] == 404
    assert await hub.get(job["id"]) == before
    if path.endswith("/events") and not ended:
        return
    for name in ("root", "alice"):
        if method == "DELETE" and name == "alice":
            job = await job_of(client, "alice")
        assert await send(client, method, path, name, job["id"]) != seen


def test_there_are_routes_of_jobs():
    """The test above had some to try, of both protocols, with every method."""
    assert {method for method, _ in OF_A_JOB} == {"GET", "DELETE"}
    assert len(OF_A_JOB) >= 7


async def test_events_are_followed_with_a_key(client, hub, tmp_path):
    """To the end, by the job's owner."""
    job = await job_of(client, "alice")
    following = asyncio.create_task(client.get(f"/jobs/{job['id']}/events", headers=as_("alice")))
    await asyncio.sleep(0.05)
    await finish(hub, tmp_path / "video.mp4")
    assert "event: succeeded" in (await following).text


async def test_waiting_for_a_job_of_ones_own(client, hub, tmp_path):
    """The record comes when it has ended."""
    waiting = asyncio.create_task(job_of(client, "alice", wait=True))
    await asyncio.sleep(0.05)
    await finish(hub, tmp_path / "video.mp4")
    assert (await waiting)["status"] == "succeeded"


async def test_lists_have_ones_own(client):
    """An admin's has all. A cursor at another's video is as unknown as one at none."""
    made = {n: [(await job_of(client, n))["id"] for _ in range(2)] for n in ("alice", "bob")}
    for name, wanted in (*made.items(), ("root", made["alice"] + made["bob"])):
        videos = [v async for v in await openai_of(name, client).videos.list(order="asc", limit=1)]
        assert [v.id.replace("video_", "job_") for v in videos] == wanted
    seen = [
        await send(client, "GET", "/v1/videos?after={video_id}", "bob", job_id)
        for job_id in (made["alice"][0], NOBODYS)
    ]
    assert seen[0] == seen[1]
    assert (seen[0][0], json.loads(seen[0][1])["error"]["param"]) == (404, "after")


async def test_admins_routes(client):
    """403 for anyone else, before a word of what they say is checked."""
    theirs = ("/admin/", "/policies/published")
    routes = [(method, path) for method, path in ROUTES if path.startswith(theirs)]
    assert len(routes) == 11
    for method, path in routes:
        where = url(path, NOBODYS)
        for name in ("alice", "bob"):
            answer = await client.request(method, where, json={}, headers=as_(name))
            assert (answer.status_code, answer.json()["error"]["code"]) == (403, "forbidden")
        answer = await client.request(method, where, json={}, headers=as_("root"))
        assert answer.is_success or answer.status_code in (404, 422)


async def test_a_client_goes_by_its_keys_name(client, hub, caplog):
    """In records, so that `client_weights` can name it; the key itself stands nowhere: in no record, log or answer."""
    caplog.set_level(logging.DEBUG)
    job = await job_of(client, "alice")
    for known in await hub._jobs():
        assert known.client == "alice"
    stored = await (await hub._jobs()).store.load()
    refused = await client.get("/models", headers={"x-api-key": KEYS["alice"] + "x"})
    for told in (job, stored, await hub.get(job["id"]), refused.text, caplog.text):
        assert KEYS["alice"] not in str(told)


async def test_idempotency_keys_are_ones_own(client):
    """The same from two clients stands for two jobs."""
    body, once = {"prompt": "a"}, {"idempotency-key": "1"}
    ids = set()
    for name in ("alice", "alice", "bob"):
        answer = await client.post("/generate", json=body, headers=as_(name) | once)
        ids.add(answer.json()["id"])
    assert len(ids) == 2


@pytest.mark.parametrize("sent", [*KEYS.values(), "wc_x"])
async def test_keys_are_compared_in_constant_time(sent, client, monkeypatch):
    """With every key there is, whichever is the right one."""
    compared = []

    def compare(kept: str, claimed: str) -> bool:
        compared.append(kept)
        return hmac.compare_digest(kept, claimed)

    monkeypatch.setattr(access, "hmac", type("Hmac", (), {"compare_digest": compare}))
    await client.get("/policies", headers={"x-api-key": sent})
    assert compared == [key.sha256 for key in ACCESS.keys]


async def test_openais_client(client, hub, tmp_path):
    """It sends its key as it always does, and knows our refusals by its own errors."""
    alice = openai_of("alice", client)
    video = await alice.videos.create(prompt="a")
    await finish(hub, tmp_path / "video.mp4")
    assert (await alice.videos.poll(video.id)).status == "completed"
    assert (await alice.videos.download_content(video.id)).content == b"a video"
    with pytest.raises(AuthenticationError) as caught:
        await openai_of("wc_x", client).videos.create(prompt="a")
    assert caught.value.code == "invalid_api_key"
    with pytest.raises(PermissionDeniedError):
        await alice.post("http://test/admin/invalidate", body={}, cast_to=object)


def limited(requests: str = "", submissions: str = "") -> AccessConfig:
    """Rates for everyone; bob's submissions are his own."""
    rate, bob = RateLimits(requests, submissions), RateLimits(requests, "3/day")
    keys = (replace(k, rate=bob) if k.name == "bob" else k for k in ACCESS.keys)
    return replace(ACCESS, keys=tuple(keys), rate=rate)


@pytest.mark.parametrize("granted", [limited(requests="3/hour")], indirect=True, ids=["3/hour"])
async def test_requests_are_limited(client):
    """The fourth is told when to come again, and what it has had; others, and what is open, go on."""
    for left in (2, 1, 0):
        answer = await client.get("/policies", headers=as_("alice"))
        assert answer.status_code == 200
        assert answer.headers["x-ratelimit-remaining-requests"] == str(left)
    answer = await client.get("/policies", headers=as_("alice"))
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["retryable"]) == (429, "rate_limited", True)
    assert 3590 < int(answer.headers["retry-after"]) <= 3600
    assert answer.headers["x-ratelimit-remaining-requests"] == "0"
    assert (await client.get("/policies", headers=as_("bob"))).status_code == 200
    assert (await client.get("/health", headers=as_("alice"))).status_code == 200


@pytest.mark.parametrize("granted", [limited(submissions="1/hour")], indirect=True, ids=["1/hour"])
async def test_submissions_are_limited(client):
    """Over both protocols together; whoever has had its share follows, cancels, and sends again what was taken in.
    What can't be made doesn't count. A key may have a rate of its own."""
    once = {"idempotency-key": "1"}
    bad = await client.post("/generate", json={"prompt": "a", "width": 33}, headers=as_("alice"))
    assert bad.status_code == 422
    first = await client.post("/generate", json={"prompt": "a"}, headers=as_("alice") | once)
    assert first.headers["x-ratelimit-remaining-submissions"] == "0"
    with pytest.raises(RateLimitError) as caught:
        await openai_of("alice", client).videos.create(prompt="a")
    assert caught.value.code == "rate_limited"
    assert int(caught.value.response.headers["retry-after"]) > 3500
    again = await client.post("/generate", json={"prompt": "a"}, headers=as_("alice") | once)
    assert again.json()["id"] == first.json()["id"]
    for _ in range(10):
        polled = await client.get(f"/jobs/{first.json()['id']}", headers=as_("alice"))
        assert polled.status_code == 200
    assert (await client.delete(f"/jobs/{first.json()['id']}", headers=as_("alice"))).is_success
    for _ in range(3):
        await job_of(client, "bob")


KEYLESS = AccessConfig(rate=RateLimits(requests="1/hour"))


@pytest.mark.parametrize("granted", [KEYLESS], indirect=True, ids=["1/hour"])
async def test_rates_without_keys(client):
    """They hold for all together: a client is then whoever it says it is, so another name evades none."""
    sent = ({}, as_("alice"), {"authorization": "Bearer x"})
    answers = [await client.get("/policies", headers=headers) for headers in sent]
    assert [answer.status_code for answer in answers] == [200, 429, 429]
    assert "'everyone' may send 1 requests" in answers[1].json()["error"]["message"]


@pytest.mark.parametrize("granted", [AccessConfig()], indirect=True, ids=["no keys"])
async def test_everything_without_keys(client):
    """It sees everyone's jobs, and needs no key for anything."""
    assert (await client.post("/admin/invalidate", json={}, headers=as_("bob"))).is_success


@pytest.mark.parametrize(
    "granted", [AccessConfig(rate=RateLimits("999/hour", "999/hour"))], indirect=True, ids=["999"]
)
async def test_invented_names_take_no_memory(client, lonely):
    """The ingress counts as little for a hundred of them as for one."""
    layers = lonely._transport.app.user_middleware
    limiter = next(layer.kwargs["limiter"] for layer in layers if layer.cls is access.Gate)
    for number in range(100):
        await client.get("/policies", headers={"x-api-key": f"name {number}"})
    assert len(limiter._windows.storage.events) == 1


ORIGIN = "https://studio.example"


@pytest.mark.parametrize(
    "granted", [ACCESS, replace(ACCESS, cors_origins=(ORIGIN,))], indirect=True, ids=["off", "on"]
)
@pytest.mark.parametrize("origin", [ORIGIN, "https://elsewhere.example"])
async def test_other_origins(origin, granted, client):
    """A browser is told to hand answers to pages of the configured origins, of none by default; it asks without key,
    and refusals can be read too."""
    allowed = origin if origin in granted.cors_origins else None
    asked = {"access-control-request-method": "POST", "access-control-request-headers": "x-api-key"}
    ahead = await client.options("/generate", headers={"origin": origin} | asked)
    assert ahead.is_success == bool(allowed)
    assert ahead.headers.get("access-control-allow-origin") == allowed
    for headers, status in (({}, 401), (as_("alice"), 200)):
        answer = await client.get("/policies", headers={"origin": origin} | headers)
        assert answer.status_code == status
        assert answer.headers.get("access-control-allow-origin") == allowed


def test_descriptions_without_keys():
    """Where none are needed, none are spoken of."""
    described = build_api(replace(CONFIG, access=AccessConfig()), None).openapi()
    assert "securitySchemes" not in described["components"]
    assert set(API.openapi()["components"]["securitySchemes"]) == {"APIKeyHeader", "HTTPBearer"}
