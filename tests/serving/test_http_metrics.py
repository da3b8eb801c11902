"""Answers in figures, over the routes themselves."""

import httpx
from hubs import exported

from warpcache_ray.serving.coordinator import Coordinator


async def test_answers_are_counted_by_template(hub: Coordinator, client: httpx.AsyncClient) -> None:
    """One row for all jobs, by method and status; what no route is for counts under one name, whatever it was called,
    also a method that nobody knows; the latency of each is in the histogram."""
    for number in range(3):
        await client.get(f"/jobs/job_{number}")
        await client.get(f"/nowhere/{number}")
    await client.get("/v1/models")
    await client.request("BREW", "/jobs")
    found = exported((await client.get("/metrics")).text)
    answers = {name: value for name, value in found.items() if "http_requests_total" in name}
    counted = "warpcache_http_requests_total"
    assert answers == {
        f'{counted}{{method="GET",route="/jobs/{{job_id}}",status="404"}}': 3,
        f'{counted}{{method="GET",route="none",status="404"}}': 3,
        f'{counted}{{method="GET",route="/v1/models",status="200"}}': 1,
        f'{counted}{{method="other",route="/jobs",status="405"}}': 1,
    }
    latency = "warpcache_http_latency_seconds_count"
    assert found[f'{latency}{{method="GET",route="/jobs/{{job_id}}"}}'] == 3
