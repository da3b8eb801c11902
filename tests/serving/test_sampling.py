"""Which jobs are audited."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import pytest

from warpcache_ray.serving.lifecycle import Job, new_id
from warpcache_ray.serving.sampling import latents_beside, served_by, wanted

ORIGIN = {"source": "registry", "slot": "default-0", "version": 3}
JOB = Job("job_1", {}, {"name": "auto"}, 0.0, policy_origin=ORIGIN)


def test_the_share_that_is_asked_for() -> None:
    """Of many jobs, and the same ones again; a larger share has them all. It says nothing of who gets a canary, which
    is decided by the id's own hash."""
    jobs = [replace(JOB, id=new_id()) for _ in range(4000)]
    found = {job.id for job in jobs if wanted(job, 0.05)}
    assert 140 < len(found) < 260
    assert found == {job.id for job in jobs if wanted(job, 0.05)}
    assert found < {job.id for job in jobs if wanted(job, 0.2)}
    assert all(wanted(job, 1.0) for job in jobs)
    low = [id for id in found if hashlib.sha256(id.encode()).digest()[0] < 128]
    assert 0.3 < len(low) / len(found) < 0.7


@pytest.mark.parametrize(
    "changes",
    [
        {"policy": {"name": "never"}},
        {"policy_origin": {}},
        {"policy_origin": {"source": "request", "slot": None, "version": None}},
        {"policy_origin": ORIGIN | {"version": None}},
    ],
)
def test_nothing_else(changes: dict[str, Any]) -> None:
    """Jobs without a cache, and those that no version of the registry has served."""
    assert wanted(JOB, 1.0)
    assert not wanted(replace(JOB, **changes), 1.0)


def test_canaries_in_full() -> None:
    """Unless nothing is audited at all."""
    canary = replace(JOB, policy_origin=ORIGIN | {"source": "canary"})
    assert wanted(canary, 1e-9)
    assert not wanted(JOB, 1e-9)
    assert not wanted(canary, 0)


@pytest.mark.parametrize("folder", ["/results/job_1", "s3://bucket/results/job_1"])
def test_where_the_latents_are(folder: str) -> None:
    """Beside the video of the attempt that was published, wherever that was kept."""
    job = replace(JOB, fence=2, result={"path": f"{folder}/2.mp4"})
    assert latents_beside(job) == f"{folder}/2-latents.pt"
    assert served_by(job) == ("default-0", 3)
