"""Webhooks: what is due, what is sent and when again; and which requests may name one."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from datetime import UTC, datetime

import httpx
import pytest
from hubs import CONFIG, INFO
from standardwebhooks import Webhook

from warpcache_ray.errors import InvalidRequest
from warpcache_ray.outbound_config import OutboundConfig, WebhookConfig
from warpcache_ray.serving import webhooks
from warpcache_ray.serving.coordinator import Coordinator
from warpcache_ray.serving.lifecycle import Delivery, Job, Status
from warpcache_ray.serving.outbound import Outbound, Posted
from warpcache_ray.store.server import EmbeddedServer

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
ENDED = Job(
    "job_1", {"prompt": "a"}, {"name": "never"}, 1.0, status=Status.SUCCEEDED, finished_at=1.6e9
)
TRIED = replace(ENDED, webhook=Delivery(3, next_at=50.0))


def test_the_schemes_own_example():
    """Signature and headers of the published test vector."""
    signed = webhooks.signed(ENDED, b'{"test": 2432232314}', SECRET, 1614265330.9)
    assert signed["webhook-id"] == "evt_1"
    vector = datetime.fromtimestamp(1614265330, UTC)
    theirs = Webhook(SECRET).sign("msg_p5jXN8AQM9LWM0D4loKWxJek", vector, '{"test": 2432232314}')
    assert theirs == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    ours = Webhook(SECRET).sign("evt_1", vector, '{"test": 2432232314}')
    assert (signed["webhook-timestamp"], signed["webhook-signature"]) == ("1614265330", ours)


def test_a_message_is_the_record():
    """Type, time and record; an attempt more changes nothing of it."""
    body = json.loads(webhooks.message(ENDED))
    assert (body["type"], body["timestamp"]) == ("job.succeeded", "2020-09-13T12:26:40+00:00")
    assert body["data"] == {k: v for k, v in ENDED.to_dict().items() if k != "webhook"}
    assert webhooks.message(TRIED) == webhooks.message(ENDED)


@pytest.mark.parametrize(
    ("job", "now", "due"),
    [
        (TRIED, 49.0, False),
        (TRIED, 50.0, True),
        (replace(TRIED, removed=True), 50.0, False),
        (replace(TRIED, status=Status.RUNNING), 50.0, False),
        (replace(TRIED, webhook=Delivery(3)), 50.0, False),
        (ENDED, 50.0, False),
    ],
)
def test_what_is_due(job, now, due):
    """Ends of jobs that are still wanted, whose time has come, and that weren't told or given up."""
    assert webhooks.is_due(job, now) == due


def test_waits_grow():
    """Threefold, up to the last attempt: over 14 hours as it comes."""
    config, delivery, waits = WebhookConfig(), Delivery(next_at=0.0), []
    while delivery.next_at is not None:
        waits.append(delivery.next_at)
        delivery = webhooks.after(delivery, webhooks.Outcome("no"), config, 0.0, 1.0)
    assert waits == [0.0, 5.0, 15.0, 45.0, 135.0, 405.0, 1215.0, 3645.0, 10935.0, 32805.0]
    assert sum(waits) / 3600 == pytest.approx(13.7, abs=0.1)
    assert delivery == Delivery(10, last_error="no")
    spread = webhooks.after(Delivery(1), webhooks.Outcome("no"), config, 100.0, 1.2)
    assert spread.next_at == pytest.approx(100.0 + 15.0 * 1.2)


NOW = datetime(2026, 11, 21, 12, tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("value", "wait"),
    [
        ("120", 120.0),
        ("0", 0.0),
        ("Sat, 21 Nov 2026 12:00:30 GMT", 30.0),
        ("Sat, 21 Nov 2026 11:00:00 GMT", 0.0),
        ("9" * 400, webhooks.PATIENCE_S),
        ("9" * 5000, 0.0),
        ("Sat, 21 Nov 2099 12:00:00 GMT", webhooks.PATIENCE_S),
        ("Mon, 01 Jan 99999999999999999999 00:00:00 GMT", 0.0),
        ("-5", 0.0),
        ("soon", 0.0),
        ("²", 0.0),
        ("", 0.0),
    ],
)
def test_when_a_receiver_wants_it_again(value, wait):
    """In seconds or as a date, for 429 and 503; not for ever, and never sooner than usual."""
    for status in (429, 503):
        came = webhooks.outcome(
            Posted(status, httpx.Headers({"retry-after": value.encode("latin-1")})), NOW
        )
        assert (came.retry_after_s, came.final) == (wait, False)
    other = webhooks.outcome(Posted(500, httpx.Headers({"retry-after": "120"})), NOW)
    assert other.retry_after_s == 0.0
    config = WebhookConfig(backoff_s=60.0)
    assert webhooks.after(Delivery(), came, config, NOW, 1.0).next_at == NOW + max(60.0, wait)


@pytest.mark.parametrize(
    ("status", "error", "final"),
    [
        (200, False, False),
        (204, False, False),
        (302, True, False),
        (404, True, False),
        (410, True, True),
    ],
)
def test_what_an_answer_means(status, error, final):
    """2xx is a delivery, a redirect isn't, 410 is the last of it."""
    came = webhooks.outcome(Posted(status, httpx.Headers()), NOW)
    assert (came.error == f"the receiver answered {status}", came.final) == (error, final)


@pytest.fixture
def hub_with_hooks(application: str, store_server: EmbeddedServer) -> Coordinator:
    config = replace(
        CONFIG,
        outbound=OutboundConfig(allow_hosts=("hooks.example",)),
        webhooks=WebhookConfig(secret=SECRET),
    )
    return Coordinator(application, config, store_server)


@pytest.mark.parametrize("route", ["/generate", "/v1/videos"])
@pytest.mark.parametrize(
    ("url", "said"),
    [
        (
            "https://evil.example/",
            "webhook_url = 'https://evil.example/' is not allowed: .*outbound.allow_hosts",
        ),
        (
            "http://hooks.example/",
            "webhook_url = 'http://hooks.example/' is not allowed: it must be https",
        ),
        ("", "webhook_url = '': .*at least 1 character"),
        ("https://hooks.example/" + "a" * 3000, "webhook_url = 'https.*at most 2048 characters"),
        (5, "webhook_url = 5: .*string"),
    ],
)
async def test_requests_with_a_webhook(route, url, said, hub_with_hooks, api_of):
    """Refused by the field's name if it isn't allowed, else taken in with it; it is part of what a key stands for."""
    hub = hub_with_hooks
    await hub.claim("replica_1", INFO, 0.01)
    transport = httpx.ASGITransport(api_of(hub), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        answer = await client.post(route, json={"prompt": "a", "webhook_url": url})
        assert answer.status_code == 422
        assert answer.json()["error"]["param"] == "webhook_url"
        assert re.search(said, answer.json()["error"]["message"])
        body = {"prompt": "a", "webhook_url": "https://hooks.example/a?b"}
        job = (await client.post(route, json=body)).json()
        record = (await client.get(f"/jobs/{job['id'].replace('video_', 'job_')}")).json()
        assert record["request"]["webhook_url"] == "https://hooks.example/a?b"
        assert (record["webhook"]["attempts"], record["webhook"]["delivered_at"]) == (0, None)


@pytest.mark.parametrize("secret", ["", "whsec_", "whsec_short", "sk-" + "a" * 40])
def test_without_a_secret_there_are_none(secret, monkeypatch):
    """The message tells the operator what to do, and nothing of a secret that won't do."""
    monkeypatch.setenv("HOOK_SECRET", secret)
    outbound = Outbound(OutboundConfig(allow_hosts=("hooks.example",)))
    for config in (WebhookConfig(), WebhookConfig(secret_env="HOOK_SECRET")):
        with pytest.raises(
            InvalidRequest, match=r"webhook_url: .*operator must set webhooks\.secret"
        ) as refused:
            webhooks.check("https://hooks.example/", outbound, config)
        assert refused.value.param == "webhook_url"
        assert not secret.removeprefix("whsec_") or secret not in refused.value.message
    monkeypatch.setenv("HOOK_SECRET", SECRET)
    webhooks.check("https://hooks.example/", outbound, WebhookConfig(secret_env="HOOK_SECRET"))
    with pytest.raises(
        InvalidRequest, match=r"webhook_url = 'https://evil.example/' is not allowed"
    ):
        webhooks.check("https://evil.example/", outbound, WebhookConfig(secret=SECRET))
