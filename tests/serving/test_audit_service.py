"""Audits in the real service: a policy that breaks its promise is found out by idle replicas, and replaced."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import httpx
import pytest
from hubs import exported

from warpcache_ray.policy_document import PolicyDocument, PolicyKey, Target

pytestmark = pytest.mark.slow

PROMPT = "a red circle moving right over a blue background"
SIZE = {"height": 32, "width": 32, "num_frames": 9}
JOBS = 5
STEPS = 100
STEP = 'warpcache_audit_steps_total{step="rollback"}'


def document(client: httpx.Client, calls: int) -> PolicyDocument:
    """One for the model that is served, which promises what it can't keep with few calls."""
    key = PolicyKey(**client.get("/models").json()["policy_key"])
    return PolicyDocument(
        key=replace(key, **SIZE, steps=8),
        policy={"name": "auto", "max_calls": calls},
        target=Target("ssim", 0.995),
        expected={"calls": calls},
    )


def publish(client: httpx.Client, calls: int) -> dict[str, Any]:
    """Brings it into force."""
    body = {"document": document(client, calls).to_dict(), "why": f"{calls} calls"}
    answer = client.post("/policies/published", json=body)
    assert answer.status_code == 200, answer.text
    slot: dict[str, Any] = answer.json()
    return slot


def soon(found: Callable[[], bool]) -> None:
    """Waits for what idle replicas bring about."""
    until = time.monotonic() + 90
    while not found():
        assert time.monotonic() < until
        time.sleep(0.2)


def test_a_bad_policy_is_found_out_and_replaced(
    deploy: Callable[..., httpx.Client], until: Callable[..., Any]
) -> None:
    """It serves five jobs; two idle replicas make these again, uncached, and the version before comes back by itself:
    once, with the figures in the history, an event and a metric. Jobs of later have that version."""
    client = deploy("toyworld", "toyworld/wan", replicas=2, audits={"share": 1.0})
    soon(lambda: client.get("/health").json()["replicas"] == 2)
    good = publish(client, 8)["active"]
    slot = publish(client, 2)
    before = exported(client.get("/metrics").text)[STEP]
    jobs = [
        client.post("/generate", json={"prompt": PROMPT, "seed": n}).json() for n in range(JOBS)
    ]
    for job in jobs:
        record = until(client, job["id"], lambda r: r["finished_at"] is not None)
        assert record["status"] == "succeeded"
        assert record["policy_origin"]["version"] == slot["active"]
    where = f"/policies/published/{slot['slot']}"
    soon(lambda: client.get(where).json()["active"] == good)
    newest, *older = client.get(f"{where}/history").json()
    assert (newest["what"], newest["version"], newest["who"]) == ("rollback", good, "audit")
    assert newest["why"].startswith("promise broken: 4 of 4 audited requests missed")
    assert [change["who"] for change in older] == ["anonymous (HTTP)"] * 2

    def told() -> list[str]:
        return [event["event"] for event in client.get("/admin/audits").json()["events"]]

    soon(lambda: "rollback" in told())
    # The fifth may have been under way.
    assert [told().count(kind) for kind in ("rollback", "missed")] in ([1, 4], [1, 5])
    assert exported(client.get("/metrics").text)[STEP] == before + 1
    again = client.post("/generate", json={"prompt": PROMPT, "seed": 9, "wait": True}).json()
    assert again["policy_origin"]["version"] == good
    assert all(client.get(f"/jobs/{job['id']}").json()["fence"] == 1 for job in jobs)


def test_a_job_does_not_wait_for_an_audit(
    deploy: Callable[..., httpx.Client], until: Callable[..., Any]
) -> None:
    """One that comes while the only replica audits is served before the audit is through; that goes on then, and
    counts."""
    large = {"height": 64, "width": 64, "num_frames": 17}
    client = deploy("toyworld", "toyworld/wan", audits={"share": 1.0})
    key = replace(document(client, 90).key, **large, steps=STEPS)
    long = replace(document(client, 90), key=key).to_dict()
    assert client.post("/policies/published", json={"document": long}).status_code == 200
    first = {"prompt": PROMPT, **large, "num_inference_steps": STEPS, "wait": True}
    served = client.post("/generate", json=first).json()
    assert served["policy_origin"]["version"] == 1

    def runs(outcome: str) -> float:
        name = f'warpcache_audit_runs_total{{outcome="{outcome}"}}'
        return exported(client.get("/metrics").text)[name]

    left, made = runs("left"), runs("kept") + runs("missed")
    # A replica looks for an audit when it has waited for a job for four seconds.
    time.sleep(5)
    asked = client.post("/generate", json={"prompt": PROMPT, "quality": "exact"}).json()
    record = until(client, asked["id"], lambda r: r["finished_at"] is not None)
    assert record["status"] == "succeeded"
    assert (runs("left"), runs("kept") + runs("missed")) == (left + 1, made)
    soon(lambda: runs("kept") + runs("missed") == made + 1)


def test_a_model_is_profiled_on_its_first_requests(
    deploy: Callable[..., httpx.Client], until: Callable[..., Any]
) -> None:
    """With one line of configuration: two jobs are served by what the configuration has, the idle replica profiles on
    their prompts, a job that comes meanwhile is served, and a canary is there."""
    itself = {"auto_profile": True, "profile_requests": 2, "quality": 0.9}
    client = deploy("toyworld", "toyworld/wan", profiler=itself)
    size = SIZE | {"num_inference_steps": 12}
    for color in ("red", "green"):
        body = {"prompt": PROMPT.replace("red", color), **size, "wait": True}
        job = client.post("/generate", json=body).json()
        assert job["policy_origin"]["source"] == "configuration"
    time.sleep(5)
    asked = client.post("/generate", json={"prompt": PROMPT, "quality": "exact"}).json()
    record = until(client, asked["id"], lambda r: r["finished_at"] is not None)
    assert record["status"] == "succeeded"

    def canaries() -> list[dict[str, Any]]:
        slots = client.get("/policies/published").json()
        return [slot for slot in slots if slot["canary"] and slot["key"]["steps"] == 12]

    soon(lambda: canaries() != [])
    [slot] = canaries()
    assert (slot["active"], slot["share"]) == (None, 20)
    assert slot["target"] == {"metric": "ssim", "bound": 0.9}
    assert 1 <= slot["expected"]["calls"] < 12
    [change] = client.get(f"/policies/published/{slot['slot']}/history").json()
    assert change["who"] == "auto_profile"
    assert client.get("/admin/audits").json()["events"][0]["event"] == "profiled"
