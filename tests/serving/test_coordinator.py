"""The coordinator as plain asyncio, without Ray."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from warpcache_ray.config import Limits, ModelConfig, ServiceConfig
from warpcache_ray.errors import Cancelled, GenerationFailed, NotFound, QueueFull, WorkerLost
from warpcache_ray.serving import coordinator
from warpcache_ray.serving.coordinator import Coordinator

CONFIG = ServiceConfig(ModelConfig("x", device="cpu", limits=Limits(queue=2)), max_attempts=2)
INFO = {"size_multiple": 16, "frame_multiple": 4}
SOON = 5.0


def totals(step: int, hits: int = 0) -> dict[str, Any]:
    """A replica's report at `step` of 4."""
    counted = {"hits": hits, "misses": 0, "warped": 0, "recomputed": 1, "cache_bytes": 8}
    return {"step": step, "total": 4, **counted, "summary": {"hits": hits}, "drifts": [0.1]}


@pytest.fixture
def hub() -> Coordinator:
    return Coordinator(CONFIG)


@pytest.fixture
async def reaped(monkeypatch) -> Coordinator:
    """A coordinator whose reaper never rests."""
    monkeypatch.setattr(coordinator, "REAP_S", 0.01)
    hub = Coordinator(CONFIG)
    # A replica that asks for work sets the reaper going, after a restart too.
    assert await hub.claim("replica_0", INFO, 0.0) is None
    return hub


async def _submit(hub: Coordinator) -> str:
    job = await hub.submit({"prompt": "a"}, {"name": "never"})
    return job["id"]


async def _claim(hub: Coordinator, replica: str = "replica_1") -> tuple[str, int]:
    attempt = await hub.claim(replica, INFO, SOON)
    return attempt["job_id"], attempt["fence"]


async def _until(happened) -> None:
    async with asyncio.timeout(SOON):
        while not happened():
            await asyncio.sleep(0.005)


def _sample(hub: Coordinator, name: str, **labels: str) -> float | None:
    return hub.metrics.registry.get_sample_value(name, labels)


async def test_measurements_of_a_policy_go_to_the_replica_alone(hub):
    """An attempt has the policy as it was submitted, a record a digest of what was measured for it."""
    policy = {"name": "auto", "gram": {"sigmas": [1.0], "products": [2.0], "branches": ["cond"]}}
    record = await hub.submit({"prompt": "a"}, policy)
    assert record["policy"]["gram"].startswith("sha256:")
    attempt = await hub.claim("replica_1", INFO, SOON)
    assert attempt["policy"] == policy


async def test_a_job_from_submission_to_video(hub):
    """Queued, claimed with its request and policy, reported, finished; its video's place is told apart."""
    job_id = await _submit(hub)
    assert (await hub.get(job_id))["status"] == "queued"
    attempt = await hub.claim("replica_1", INFO, SOON)
    assert attempt["id"] == f"{job_id}#1"
    assert (attempt["request"], attempt["policy"]) == ({"prompt": "a"}, {"name": "never"})
    assert await hub.report(job_id, 1, totals(2, hits=1))
    record = await hub.get(job_id)
    assert (record["status"], record["progress"], record["cache"]) == ("running", 0.5, {"hits": 1})
    assert await hub.video_path(job_id) is None
    assert await hub.finish(job_id, 1, {"path": "/v.mp4", "bytes": 3}, None)
    assert (await hub.get(job_id))["result"] == {"bytes": 3}
    assert await hub.video_path(job_id) == "/v.mp4"
    assert _sample(hub, "warpcache_requests_total", status="succeeded") == 1
    assert _sample(hub, "warpcache_cache_hits_total") == 1
    assert _sample(hub, "warpcache_cache_size") == 0


async def test_first_in_first_out(hub):
    """Jobs are handed out in the order of their submission; an idle replica gets None in the end."""
    jobs = [await _submit(hub), await _submit(hub)]
    assert [(await _claim(hub))[0] for _ in jobs] == jobs
    assert await hub.claim("replica_1", INFO, 0.01) is None


async def test_waiting_replicas_share_the_jobs(hub):
    """Each new job wakes all idle replicas, and just one of them gets it."""
    claims = [asyncio.create_task(hub.claim(name, INFO, SOON)) for name in ("a", "b")]
    jobs = []
    for count in (1, 2):
        jobs.append(await _submit(hub))
        await _until(lambda count=count: sum(claim.done() for claim in claims) == count)
    assert sorted(claim.result()["job_id"] for claim in claims) == sorted(jobs)


async def test_queue_limit(hub):
    """Only waiting jobs count: a claimed one makes room."""
    await _submit(hub)
    await _submit(hub)
    with pytest.raises(QueueFull, match="2 jobs wait"):
        await _submit(hub)
    await _claim(hub)
    await _submit(hub)


@pytest.mark.parametrize("method", ["get", "video_path", "cancel", "wait"])
async def test_unknown_jobs(method, hub):
    """Every method says NotFound."""
    with pytest.raises(NotFound, match="job_x"):
        await getattr(hub, method)("job_x", *([1.0] if method == "wait" else []))


@pytest.mark.parametrize("error", [None, GenerationFailed("no").to_dict()])
async def test_wait_wakes_when_the_job_ends(error, hub):
    """Whoever waits gets the final record; who waits too briefly gets the record as it stands."""
    job_id = await _submit(hub)
    assert (await hub.wait(job_id, 0.01))["status"] == "queued"
    waiting = [asyncio.create_task(hub.wait(job_id, 60.0)) for _ in range(3)]
    await _claim(hub)
    await hub.finish(job_id, 1, {}, error)
    records = await asyncio.wait_for(asyncio.gather(*waiting), SOON)
    assert {r["status"] for r in records} == {"failed" if error else "succeeded"}


async def test_cancel_of_a_queued_job(hub):
    """It ends at once and is never handed out."""
    job_id = await _submit(hub)
    assert (await hub.cancel(job_id))["status"] == "cancelled"
    assert await hub.claim("replica_1", INFO, 0.01) is None
    await hub.cancel(job_id)
    assert _sample(hub, "warpcache_requests_total", status="cancelled") == 1


async def test_cancel_of_a_running_job(hub):
    """The replica hears of it by its next report, and says when it has ended."""
    job_id, fence = await _submit(hub), 1
    await _claim(hub)
    assert (await hub.cancel(job_id))["status"] == "running"
    assert not await hub.report(job_id, fence, totals(1))
    await hub.finish(job_id, fence, {}, Cancelled("after step 1").to_dict())
    assert (await hub.get(job_id))["status"] == "cancelled"


@pytest.mark.parametrize("reason", ["cancel", "lost", "end"])
async def test_an_attempt_hears_of_its_end_at_once(reason, hub):
    """A cancellation, a job given back to the queue or its end ends the wait; without any the attempt keeps on."""
    job_id = await _submit(hub)
    await _claim(hub)
    assert await hub.keeps_on(job_id, 1, 0.01)
    waiting = asyncio.create_task(hub.keeps_on(job_id, 1, 60.0))
    await asyncio.sleep(0.01)
    if reason == "cancel":
        await hub.cancel(job_id)
    else:
        await hub.finish(job_id, 1, {}, None if reason == "end" else WorkerLost("x").to_dict())
    assert not await asyncio.wait_for(waiting, SOON)


@pytest.mark.parametrize(
    "error", [None, WorkerLost("x").to_dict(), GenerationFailed("x").to_dict()]
)
async def test_a_stale_attempt_publishes_nothing(error, hub):
    """After a newer claim the older attempt's report and outcome are refused and change nothing."""
    job_id = await _submit(hub)
    await _claim(hub)
    await hub.finish(job_id, 1, {}, WorkerLost("gone").to_dict())
    assert await _claim(hub, "replica_2") == (job_id, 2)
    before = await hub.get(job_id)
    assert not await hub.report(job_id, 1, totals(3, hits=9))
    assert not await hub.finish(job_id, 1, {"path": "/stale"}, error)
    assert await hub.get(job_id) == before
    assert await hub.video_path(job_id) is None
    assert _sample(hub, "warpcache_cache_hits_total") == 0


async def test_lost_twice_has_failed(hub):
    """A worker lost in each of two attempts fails the job as worker_lost; the end counts once."""
    job_id = await _submit(hub)
    for fence in (1, 2):
        assert await _claim(hub) == (job_id, fence)
        assert await hub.finish(job_id, fence, {}, WorkerLost("x").to_dict())
    record = await hub.get(job_id)
    assert (record["status"], record["error"]["code"]) == ("failed", "worker_lost")
    assert _sample(hub, "warpcache_requests_total", status="failed") == 1


async def test_a_lease_that_is_over_frees_the_job(reaped):
    """A silent replica's job goes to another one, and fails when that one is silent too."""
    await reaped.configure(replace(CONFIG, lease_s=0.02))
    job_id = await _submit(reaped)
    assert await _claim(reaped, "silent") == (job_id, 1)
    assert await _claim(reaped, "silent too") == (job_id, 2)
    assert (await reaped.wait(job_id, SOON))["error"]["code"] == "worker_lost"


async def test_results_expire(reaped, tmp_path):
    """After its time a job and its video are gone; the reaper goes on."""
    video = tmp_path / "v.mp4"
    video.write_bytes(b"v")
    job_id = await _submit(reaped)
    await _claim(reaped)
    await reaped.finish(job_id, 1, {"path": str(video)}, None)
    await reaped.configure(replace(CONFIG, result_ttl_s=1e-6))
    await _until(lambda: not reaped.jobs)
    assert not video.exists()
    with pytest.raises(NotFound):
        await reaped.get(job_id)


async def test_the_reaper_never_undoes_an_end(reaped):
    """A job that ends while the reaper is at another one stays ended."""
    jobs = [await _submit(reaped), await _submit(reaped)]
    for _ in jobs:
        await _claim(reaped)
    # Whoever holds the condition keeps the reaper at its first job.
    async with reaped._changed:
        await reaped.configure(replace(CONFIG, lease_s=1e-6))
        await _until(lambda: reaped.jobs[jobs[0]].status == "queued")
        finished = asyncio.create_task(reaped.finish(jobs[1], 1, {}, None))
        await _until(lambda: reaped.jobs[jobs[1]].ended)
    assert await finished
    await asyncio.sleep(0.05)
    assert (await reaped.get(jobs[1]))["status"] == "succeeded"


async def test_health_tells_of_live_replicas_and_jobs(hub):
    """Replicas that asked lately with what they can make, and jobs by status."""
    job_id = await _submit(hub)
    await _submit(hub)
    assert (await hub.health())["replicas"] == {}
    await _claim(hub)
    await hub.finish(job_id, 1, {}, None)
    health = await hub.health()
    assert health["replicas"] == {"replica_1": INFO}
    assert health["jobs"] == {
        "queued": 1, "running": 0, "succeeded": 1, "failed": 0, "cancelled": 0
    }  # fmt: skip
    await hub.configure(replace(CONFIG, lease_s=1e-6))
    assert (await hub.health())["replicas"] == {}
