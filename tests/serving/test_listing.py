"""`GET /jobs` over a real coordinator."""

import httpx
from hubs import claim, submit

from warpcache_ray.serving.coordinator import Coordinator


async def test_pages_of_jobs(hub: Coordinator, client: httpx.AsyncClient) -> None:
    """The newest first, each as its own route tells it; the next page begins after the last one's end."""
    ids = [await submit(hub), await submit(hub)]
    ended, fence = await claim(hub)
    await hub.finish(ended, fence, {"path": "x"}, None)
    ids.append(await submit(hub))
    first = (await client.get("/jobs", params={"limit": 2})).json()
    rest = (await client.get("/jobs", params={"after": first["jobs"][-1]["id"]})).json()
    assert (first["has_more"], rest["has_more"]) == (True, False)
    own = [(await client.get(f"/jobs/{job}")).json() for job in reversed(ids)]
    assert first["jobs"] + rest["jobs"] == own
    assert [job["queue_position"] for job in own] == [2, 1, None]


async def test_a_place_that_is_unknown(client: httpx.AsyncClient) -> None:
    """404 for `after`, by name."""
    answer = await client.get("/jobs", params={"after": "job_0"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (404, "after")
