"""`GET /jobs` over a real coordinator."""

import httpx
from hubs import claim, submit

from warpcache_ray.serving.coordinator import Coordinator


async def test_pages_of_jobs(hub: Coordinator, client: httpx.AsyncClient) -> None:
    """The newest first, each as its own route tells it; the next page begins after the last one's end."""
    ids = [await submit(hub), await submit(hub)]
    job, fence = await claim(hub)
    await hub.finish(job, fence, {"path": "x"}, None)
    ids.append(await submit(hub))
    first = (await client.get("/jobs", params={"limit": 2})).json()
    rest = (await client.get("/jobs", params={"after": first["jobs"][-1]["id"]})).json()
    listed = first["jobs"] + rest["jobs"]
    assert [job["id"] for job in listed] == ids[::-1]
    assert (first["has_more"], rest["has_more"]) == (True, False)
    own = (await client.get(f"/jobs/{job}")).json()
    assert [each for each in listed if each["id"] == job] == [
        {key: own[key] for key in own if key not in ("queue_position", "eta_s")}
    ]


async def test_a_place_that_is_unknown(client: httpx.AsyncClient) -> None:
    """404 for `after`, by name."""
    answer = await client.get("/jobs", params={"after": "job_0"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (404, "after")
