"""The published policies over HTTP: what admins see and change, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import httpx
import pytest
from documents import KEY, SLOT, document
from hubs import CONFIG, INFO

from warpcache_ray.serving.coordinator import Coordinator
from warpcache_ray.serving.policy_routes import PastChange, SlotLine, SlotState

URL = "/policies/published"
NO_SLOT = "default-0123456789abcdef"


@pytest.fixture
def hub(application, store_server, tmp_path) -> Coordinator:
    return Coordinator(application, replace(CONFIG, results=str(tmp_path)), store_server)


async def change(client: httpx.AsyncClient, path: str, **body: Any) -> dict[str, Any]:
    """The slot's line after it."""
    answer = await client.post(f"{URL}{path}", json=body)
    assert answer.status_code == 200, answer.text
    return SlotLine.model_validate(answer.json(), extra="forbid").model_dump()


async def test_a_policy_is_published_and_serves(client, hub):
    """With a canary beside it, which is withdrawn, set and promoted, and rolled back; jobs have what is in force."""
    assert (await client.get(URL)).json() == []
    line = await change(client, "", document=document(4).to_dict(), why="profiled")
    assert (line["slot"], line["active"], line["revision"]) == (SLOT, 1, 1)
    second = {"document": document(3).to_dict(), "share": 20, "revision": 1}
    assert (await change(client, "", **second))["canary"] == 2
    assert (await change(client, f"/{SLOT}/withdraw"))["canary"] is None
    assert (await change(client, f"/{SLOT}/set", version=2, share=50))["share"] == 50
    assert (await change(client, f"/{SLOT}/promote"))["active"] == 2
    assert (await change(client, f"/{SLOT}/rollback", why="worse"))["active"] == 1
    state = SlotState.model_validate((await client.get(f"{URL}/{SLOT}")).json(), extra="forbid")
    assert state.documents.active == document(4).to_dict()
    found = (await client.get(f"{URL}/{SLOT}/document", params={"version": 2})).json()
    assert found == document(3).to_dict()
    told = [
        PastChange.model_validate(entry, extra="forbid")
        for entry in (await client.get(f"{URL}/{SLOT}/history")).json()
    ]
    assert (told[0].what, told[0].why, told[-1].why) == ("rollback", "worse", "profiled")
    assert {entry.who for entry in told} == {"anonymous (HTTP)"}
    await hub.registry.refresh()
    record = (await client.post("/generate", json={"prompt": "a", "quality": 0.9})).json()
    assert (record["policy"]["max_calls"], record["policy_origin"]["version"]) == (4, 1)


@pytest.mark.parametrize(
    ("path", "body", "status", "told"),
    [
        ("", {"document": {}}, 422, "format: must be 'warpcache-policy'"),
        ("", {"document": document(4, model="Wan-1").to_dict()}, 422, "'Wan-1' is not served here"),
        ("", {"document": document(4).to_dict(), "quality": "exact"}, 422, "quality"),
        ("", {"document": document(4).to_dict(), "share": 0}, 422, "share"),
        ("", {"document": document(4).to_dict(), "revision": 3}, 409, "is at revision 0, not 3"),
        (f"/{NO_SLOT}/promote", {}, 404, "nothing is published"),
        (f"/{NO_SLOT}/set", {"version": 1}, 404, "nothing is published"),
        ("/what/promote", {}, 422, "slot"),
    ],
)
async def test_what_is_refused(client, hub, path, body, status, told):
    """By a code and in words; nothing is there afterwards."""
    await hub.claim("replica_1", INFO, 0.01)
    await hub.registry.store.serve([KEY.model], 60)
    answer = await client.post(f"{URL}{path}", json=body)
    assert (answer.status_code, told in answer.text) == (status, True), answer.text
    assert (await client.get(URL)).json() == []


async def test_what_a_request_would_be_given(client, hub):
    """For each quality what is published for its sizes, as the request itself is given it, but no canary's; for other
    steps what stands in."""
    await change(client, "", document=document(4).to_dict())
    await change(client, "", document=document(3).to_dict(), share=99, revision=1)
    await hub.registry.refresh()
    offered = (await client.get("/policies/offered")).json()
    assert list(offered) == ["default", "exact", "high", "balanced", "fast"]
    assert offered["default"]["policy"]["max_calls"] == 4
    assert offered["default"]["policy_origin"] | {"why": ""} == {
        "source": "registry",
        "quality": "default",
        "slot": SLOT,
        "version": 1,
        "why": "",
    }
    assert offered["exact"]["policy"]["name"] == "never"
    assert offered["high"]["policy_origin"]["source"] == "configuration"
    other = await client.get("/policies/offered", params={"num_inference_steps": KEY.steps - 1})
    assert other.json()["default"]["policy_origin"]["source"] == "derived"
    await change(client, f"/{SLOT}/withdraw")
    await hub.registry.refresh()
    record = (await client.post("/generate", json={"prompt": "a"})).json()
    assert offered["default"]["policy_origin"] == record["policy_origin"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"height": 8},
        {"num_frames": 1 << 60},
        {"guidance_scale": "inf"},
        {"lora": "../x"},
        {"prompt": "a"},
    ],
)
async def test_sizes_that_no_request_has(client, wrong):
    """Are refused by name."""
    answer = await client.get("/policies/offered", params=wrong)
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, next(iter(wrong)))


@pytest.mark.parametrize("quality", [0, 1, 1.5, -0.1, "best", True])
async def test_a_quality_is_a_name_or_a_share(client, quality):
    """SSIM is between 0 and 1."""
    answer = await client.post("/generate", json={"prompt": "a", "quality": quality})
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, "quality")
