"""What the tests of the coordinator share: its configuration, and a replica's part by hand."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import asdict
from typing import Any

from documents import KEY
from prometheus_client.parser import text_string_to_metric_families

from warpcache_ray.config import Limits, ModelConfig, ServiceConfig
from warpcache_ray.serving.coordinator import Coordinator
from warpcache_ray.serving.lifecycle import Order
from warpcache_ray.serving.replica import Replica

CONFIG = ServiceConfig(ModelConfig("x", device="cpu", limits=Limits(queue=2)), max_attempts=2)
INFO = {
    "pipeline": "Toy",
    "size_multiple": 16,
    "frame_multiple": 4,
    "split": None,
    "policy_key": asdict(KEY),
}
SOON = 5.0


class BareReplica(Replica):
    """One that a test puts together: the constructor asks Serve who it is, the shutdown wants a loop."""

    def __init__(self) -> None: ...

    def __del__(self) -> None: ...


def totals(
    step: int, hits: int = 0, kept: int | None = None, resumed_at: int = 0
) -> dict[str, Any]:
    """A replica's report at `step` of 4, of which `hits` were reused and the first was computed."""
    place = {"step": step, "total": 4, "epoch": 0, "resumed_at": resumed_at}
    summary = {"hits": hits, "misses": 0, "blocks_run": 10, "blocks_skipped": 10 * hits}
    counted = {"summary": summary, "decisions": {"cond": {"recompute": 1, "reuse": hits}}}
    checkpoints = {"checkpoint_step": kept, "checkpoints": int(kept is not None)}
    return {**place, **counted, **checkpoints, "cache_bytes": 8, "drifts": [0.1]}


async def submit(hub: Coordinator) -> str:
    """The id of a new job."""
    job: dict[str, Any] = await hub.submit({"prompt": "a"}, {"name": "never"})
    return str(job["id"])


_names = (f"replica_{number}" for number in itertools.count(10))


async def claim(hub: Coordinator, replica: str | None = None) -> tuple[str, int]:
    """Job and fence of what a replica is given, one that has no other."""
    attempt = await hub.claim(replica or next(_names), INFO, SOON)
    assert attempt is not None
    return attempt["job_id"], attempt["fence"]


async def report(hub: Coordinator, job_id: str, fence: int, told: dict[str, Any]) -> Order:
    """What an attempt is to do next."""
    return await hub.report(job_id, fence, told, "replica_1", INFO)


async def until(hub: Coordinator, job_id: str, status: str) -> dict[str, Any]:
    """The record, once it has this status."""
    async with asyncio.timeout(SOON):
        while (record := await hub.get(job_id))["status"] != status:
            await asyncio.sleep(0.005)
    return record


def sample(hub: Coordinator, name: str, **labels: str) -> float | None:
    """A metric's value."""
    return hub.metrics.registry.get_sample_value(name, labels)


def exported(text: str) -> dict[str, float]:
    """The samples of a /metrics page as Prometheus reads them, by name with labels as the page writes them."""
    samples = [s for family in text_string_to_metric_families(text) for s in family.samples]
    return {f"{s.name}{_labels(s.labels)}": s.value for s in samples}


def _labels(labels: dict[str, str]) -> str:
    pairs = ",".join(f'{name}="{value}"' for name, value in labels.items())
    return f"{{{pairs}}}" if pairs else ""
