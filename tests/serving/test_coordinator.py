"""The coordinator as plain asyncio, without Ray."""

import asyncio
import logging
import uuid
from dataclasses import replace
from typing import Any

import pytest

from warpcache_ray.config import Limits, ModelConfig, ServiceConfig
from warpcache_ray.errors import (
    Cancelled,
    GenerationFailed,
    NotFound,
    QueueFull,
    Unavailable,
    WorkerLost,
)
from warpcache_ray.serving import coordinator
from warpcache_ray.serving.checkpoints import Checkpoints
from warpcache_ray.serving.coordinator import Coordinator
from warpcache_ray.serving.lifecycle import Order
from warpcache_ray.store.jobs import Place, Record

CONFIG = ServiceConfig(ModelConfig("x", device="cpu", limits=Limits(queue=2)), max_attempts=2)
INFO = {"size_multiple": 16, "frame_multiple": 4, "split": None}
SOON = 5.0


def totals(step: int, hits: int = 0, kept: int | None = None) -> dict[str, Any]:
    """A replica's report at `step` of 4."""
    counted = {"hits": hits, "misses": 0, "warped": 0, "recomputed": 1, "cache_bytes": 8}
    place = {"step": step, "total": 4, "epoch": 0, "checkpoint_step": kept}
    rest = {"summary": {"hits": hits}, "drifts": [0.1], "peak_memory_bytes": 9}
    return {**place, **counted, **rest}


async def _report(hub: Coordinator, job_id: str, fence: int, told: dict[str, Any]) -> Order:
    return await hub.report(job_id, fence, told, "replica_1", INFO)


@pytest.fixture
def application() -> str:
    """A name of which the store knows nothing yet."""
    return uuid.uuid4().hex


@pytest.fixture
def hub(application, store_server) -> Coordinator:
    return Coordinator(application, CONFIG, store_server)


@pytest.fixture
async def reaped(monkeypatch, hub) -> Coordinator:
    """A coordinator whose reaper never rests."""
    monkeypatch.setattr(coordinator, "REAP_S", 0.01)
    return hub


async def _submit(hub: Coordinator) -> str:
    job = await hub.submit({"prompt": "a"}, {"name": "never"})
    return job["id"]


async def _claim(hub: Coordinator, replica: str = "replica_1") -> tuple[str, int]:
    attempt = await hub.claim(replica, INFO, SOON)
    return attempt["job_id"], attempt["fence"]


async def _until(hub: Coordinator, job_id: str, status: str) -> dict[str, Any]:
    async with asyncio.timeout(SOON):
        while (record := await hub.get(job_id))["status"] != status:
            await asyncio.sleep(0.005)
    return record


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
    assert await _report(hub, job_id, 1, totals(2, hits=1)) == Order()
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
        async with asyncio.timeout(SOON):
            while sum(claim.done() for claim in claims) != count:
                await asyncio.sleep(0.005)
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
    assert await _report(hub, job_id, fence, totals(1)) == Order(cancel=True)
    await hub.finish(job_id, fence, {}, Cancelled("after step 1").to_dict())
    assert (await hub.get(job_id))["status"] == "cancelled"
    assert _sample(hub, "warpcache_cancel_latency_seconds_count") == 1


@pytest.mark.parametrize("reason", ["cancel", "lost", "end"])
async def test_an_attempt_hears_of_its_end_at_once(reason, hub):
    """A cancellation, a job given back to the queue or its end ends the wait; without any the attempt keeps on."""
    job_id = await _submit(hub)
    await _claim(hub)
    assert await hub.control(job_id, 1, 0, 0.01) == Order()
    waiting = asyncio.create_task(hub.control(job_id, 1, 0, 60.0))
    await asyncio.sleep(0.01)
    if reason == "cancel":
        await hub.cancel(job_id)
    else:
        await hub.finish(job_id, 1, {}, None if reason == "end" else WorkerLost("x").to_dict())
    assert (await asyncio.wait_for(waiting, SOON)).cancel


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
    assert (await _report(hub, job_id, 1, totals(3, hits=9))).cancel
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
    with pytest.raises(NotFound):
        await _until(reaped, job_id, "gone")
    async with asyncio.timeout(SOON):
        while video.exists():
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("running", [False, True])
async def test_a_deadline_ends_the_job(running, reaped):
    """A waiting job fails at its time, a running one is told to end, and fails for that reason."""
    job_id = (await reaped.submit({"prompt": "a", "deadline_s": 0.05}, {"name": "never"}))["id"]
    if running:
        assert await _claim(reaped) == (job_id, 1)
        assert (await reaped.control(job_id, 1, 0, SOON)).cancel
        await reaped.finish(job_id, 1, {}, Cancelled("after step 1").to_dict())
    record = await _until(reaped, job_id, "failed")
    assert record["error"]["code"] == "deadline_exceeded"
    assert "0.05 s" in record["error"]["message"]


async def test_an_epoch_of_the_model_reaches_all_attempts(hub):
    """Attempts under way hear of it at once, later ones begin with it; jobs that ended keep theirs."""
    jobs = [await _submit(hub), await _submit(hub)]
    for _ in jobs:
        await _claim(hub)
    await hub.finish(jobs[1], 1, {}, None)
    waiting = asyncio.create_task(hub.control(jobs[0], 1, 0, 60.0))
    epoch = await hub.invalidate(None)
    assert await asyncio.wait_for(waiting, SOON) == Order(epoch)
    assert await _report(hub, jobs[0], 1, totals(1)) == Order(epoch)
    await _submit(hub)
    assert (await hub.claim("replica_1", INFO, SOON))["epoch"] == epoch
    assert (await hub.get(jobs[1]))["epoch"] == 0


async def test_an_epoch_of_one_job_is_its_own(hub):
    """The other one goes on in the old; a job that isn't there is refused."""
    jobs = [await _submit(hub), await _submit(hub)]
    for _ in jobs:
        await _claim(hub)
    epoch = await hub.invalidate(jobs[0])
    assert await _report(hub, jobs[0], 1, totals(1)) == Order(epoch)
    assert await _report(hub, jobs[1], 1, totals(1)) == Order()
    with pytest.raises(NotFound):
        await hub.invalidate("job_x")


async def test_another_model_is_another_epoch(hub):
    """A redeployment with other weights makes what is kept void, any other one doesn't."""
    await hub.configure(replace(CONFIG, lease_s=30.0))
    assert (await hub.health(), hub.epoch)[1] == 0
    await hub.configure(replace(CONFIG, model=replace(CONFIG.model, path="y")))
    assert hub.epoch > 0


async def test_one_that_was_started_anew_is_reminded(application, store_server):
    """Ray starts it with its first configuration; the one in force is told again, which voids nothing. One that knows
    its own is told nothing."""
    fresh, new = Coordinator(application, CONFIG, store_server), replace(CONFIG, max_attempts=7)
    await fresh.remind(replace(new, model=replace(CONFIG.model, path="y")))
    assert (fresh.config.max_attempts, fresh.epoch) == (7, 0)
    await fresh.configure(CONFIG)
    await fresh.remind(new)
    assert fresh.config == CONFIG


async def test_pages_go_on_after_a_job_that_is_hidden(hub):
    """It was there when the page before was read."""
    jobs = [await _submit(hub) for _ in range(2)]
    await hub.cancel(jobs[0])
    await hub.remove(jobs[0])
    for newest_first, rest in ((False, [jobs[1]]), (True, [])):
        page, more = await hub.page(jobs[0], 10, newest_first)
        assert ([record["id"] for record in page], more) == (rest, False)


async def test_an_outcome_that_is_told_twice_is_published_once(hub):
    """The first answer was lost: the second says that it was published, so nobody takes the video away."""
    job_id = await _submit(hub)
    await _claim(hub)
    for _ in range(2):
        assert await hub.finish(job_id, 1, {"path": "/v.mp4"}, None)
    assert await hub.video_path(job_id) == "/v.mp4"
    assert _sample(hub, "warpcache_requests_total", status="succeeded") == 1


async def test_hidden_jobs_expire_too(reaped):
    """What a client deleted doesn't stay in the store for ever."""
    job_id = await _submit(reaped)
    await reaped.cancel(job_id)
    await reaped.remove(job_id)
    await reaped.configure(replace(CONFIG, result_ttl_s=1e-6))
    store = (await reaped._jobs()).store
    async with asyncio.timeout(SOON):
        while await store.get(job_id) is not None:
            await asyncio.sleep(0.005)


async def test_a_crowd_finds_no_more_room_than_there_is(hub):
    """Requests that come at once are counted one by one."""
    answers = await asyncio.gather(*(_submit(hub) for _ in range(8)), return_exceptions=True)
    assert sum(isinstance(answer, QueueFull) for answer in answers) == 6


async def test_a_job_whose_answer_was_lost_is_nobodys(reaped, monkeypatch):
    """The store has it, whoever asked was told that it failed: it is taken away, not made later."""
    jobs = await reaped._jobs()
    create, made = jobs.store.create, []

    async def lossy(record, events):
        made.append(record.id)
        await create(record, events)
        raise Unavailable("the answer was lost")

    with monkeypatch.context() as patch:
        patch.setattr(jobs.store, "create", lossy)
        with pytest.raises(Unavailable):
            await _submit(reaped)
    async with asyncio.timeout(SOON):
        while await jobs.store.get(made[0]) is not None:
            await asyncio.sleep(0.005)


async def test_an_attempt_that_spoke_meanwhile_isnt_lost(hub, monkeypatch):
    """The reaper waited for the store; the lease was renewed before it had its say."""
    job_id = await _submit(hub)
    await _claim(hub)
    await _report(hub, job_id, 1, totals(1))
    assert await hub._lose(job_id, 1, silent_s=15.0)
    assert (await hub.get(job_id))["status"] == "running"
    assert _sample(hub, "warpcache_attempts_lost_total") == 0


async def test_reports_dont_stand_in_line_for_the_store(hub):
    """While a change is being stored they count at once."""
    job_id = await _submit(hub)
    await _claim(hub)
    jobs = await hub._jobs()
    async with jobs._changing, asyncio.timeout(SOON):
        assert await _report(hub, job_id, 1, totals(2)) == Order()
    assert (await hub.get(job_id))["step"] == 2


async def test_the_reaper_survives_what_it_meets(reaped, monkeypatch, caplog):
    """An error over one job doesn't end the watch over all."""
    caplog.set_level(logging.ERROR)
    job_id = await _submit(reaped)
    await _claim(reaped)
    with monkeypatch.context() as patch:
        patch.setattr("warpcache_ray.serving.admission.expire", lambda *_: 1 / 0)
        async with asyncio.timeout(SOON):
            while "failed" not in caplog.text:
                await asyncio.sleep(0.005)
    await reaped.configure(replace(CONFIG, lease_s=0.02))
    await _until(reaped, job_id, "queued")


async def test_a_lost_attempt_has_its_own_epoch_and_the_checkpoint(hub):
    """The next one starts there, and nothing that the lost one kept counts."""
    job_id = await _submit(hub)
    await _claim(hub)
    await _report(hub, job_id, 1, totals(3, kept=2))
    await hub.finish(job_id, 1, {}, WorkerLost("x").to_dict())
    again = await hub.claim("replica_2", INFO, SOON)
    assert (await hub.get(job_id))["checkpoint_step"] == 2
    assert again["epoch"] > 0
    assert _sample(hub, "warpcache_attempts_lost_total") == 1


async def test_checkpoints_go_when_the_job_ends(hub, tmp_path):
    """Whatever its end was."""
    await hub.configure(replace(CONFIG, checkpoint_url=str(tmp_path)))
    for error in (None, GenerationFailed("x").to_dict()):
        job_id = await _submit(hub)
        await _claim(hub)
        Checkpoints(str(tmp_path), CONFIG.model.version).write(job_id, 1, 2, b"state")
        assert Checkpoints(str(tmp_path), CONFIG.model.version).newest(job_id) == b"state"
        await hub.finish(job_id, 1, {}, error)
        assert list(tmp_path.iterdir()) == []


async def test_a_new_coordinator_knows_what_the_old_one_knew(hub, application, store_server):
    """Killed and started anew, it has all jobs; the attempt under way reports to it and publishes as if nothing was."""
    ended, running = await _submit(hub), await _submit(hub)
    assert [(await _claim(hub))[0] for _ in range(2)] == [ended, running]
    queued = await _submit(hub)
    await hub.finish(ended, 1, {"path": "/v.mp4", "bytes": 3}, None)
    await _report(hub, running, 1, totals(2, kept=2))
    epoch = await hub.invalidate(None)

    async def told(hub):
        # But for times: they pass.
        return [await hub.get(job_id) | {"eta_s": None} for job_id in (ended, queued)]

    before = await told(hub)

    fresh = Coordinator(application, CONFIG, store_server)
    assert await told(fresh) == before
    assert fresh.epoch == epoch
    assert (await fresh.get(running))["status"] == "running"
    assert await _report(fresh, running, 1, totals(3)) == Order(epoch)
    assert (await fresh.health())["replicas"] == {"replica_1": INFO}
    assert await _claim(fresh, "replica_2") == (queued, 1)
    assert await fresh.finish(running, 1, {"bytes": 4}, None)
    assert (await fresh.get(running))["status"] == "succeeded"


async def test_a_record_of_another_version_is_left_alone(hub, application, store_server, caplog):
    """It stops nobody: the others are loaded, and it stays in the store."""
    caplog.set_level(logging.WARNING)
    job_id = await _submit(hub)
    store = (await hub._jobs()).store
    await store.create(Record("job_old", 1, Place.QUEUED, 0.0, {"id": "job_old", "mood": "fine"}))
    fresh = Coordinator(application, CONFIG, store_server)
    assert await _claim(fresh) == (job_id, 1)
    assert "record job_old can't be read" in caplog.text
    assert await store.get("job_old") is not None


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
