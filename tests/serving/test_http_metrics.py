"""Answers in figures, over the routes themselves."""

import httpx
from hubs import exported
from prometheus_client.parser import text_string_to_metric_families

from warpcache_ray.serving.coordinator import Coordinator
from warpcache_ray.serving.http_metrics import HttpMetrics


async def test_answers_are_counted_by_template(hub: Coordinator, client: httpx.AsyncClient) -> None:
    """One row for all jobs, by method and status; what no route is for counts under one name, whatever it was called,
    also a method that nobody knows; the latency of each is in the histogram."""
    for number in range(3):
        await client.get(f"/jobs/job_{number}")
        await client.get(f"/nowhere/{number}")
    await client.get("/v1/models")
    await client.request("BREW", "/jobs")
    text = (await client.get("/metrics")).text
    (own,) = _ingresses(text)
    found = exported(text.replace(f'ingress="{own}",', ""))
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


def test_two_ingresses_count_apart() -> None:
    """What a scrape reads from one is no later state of what it read from the other."""
    texts = []
    for answers in (3, 1):
        metrics = HttpMetrics()
        for _ in range(answers):
            metrics.answered("GET", "/jobs", 200, 0.01)
        texts.append(metrics.text())
    assert not _ingresses(texts[0]) & _ingresses(texts[1])


def _ingresses(text: str) -> set[str]:
    samples = [s for family in text_string_to_metric_families(text) for s in family.samples]
    return {s.labels["ingress"] for s in samples if "ingress" in s.labels}
