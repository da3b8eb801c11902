"""The coordinator as plain asyncio, without Ray."""

import asyncio
import threading
from dataclasses import replace

import pytest
from hubs import CONFIG, INFO, SOON, claim, report, sample, submit, totals, until

from warpcache_ray.errors import (
    Cancelled,
    GenerationFailed,
    NotFound,
    QueueFull,
    WorkerLost,
)
from warpcache_ray.serving import endings
from warpcache_ray.serving.artifacts import Artifacts
from warpcache_ray.serving.checkpoints import Checkpoints
from warpcache_ray.serving.jobs import Jobs
from warpcache_ray.serving.lifecycle import Order, new_id


async def test_measurements_of_a_policy_go_to_the_replica_alone(hub):
    """An attempt has the policy as it was submitted, a record a digest of what was measured for it."""
    policy = {"name": "auto", "gram": {"sigmas": [1.0], "products": [2.0], "branches": ["cond"]}}
    record = await hub.submit({"prompt": "a"}, policy)
    assert record["policy"]["gram"].startswith("sha256:")
    attempt = await hub.claim("replica_1", INFO, SOON)
    assert attempt["policy"] == policy


async def test_a_job_from_submission_to_video(hub):
    """Queued, claimed with its request and policy, reported, finished; its video's place is told apart."""
    job_id = await submit(hub)
    assert (await hub.get(job_id))["status"] == "queued"
    attempt = await hub.claim("replica_1", INFO, SOON)
    assert attempt["id"] == f"{job_id}#1"
    assert (attempt["request"], attempt["policy"]) == ({"prompt": "a"}, {"name": "never"})
    assert await report(hub, job_id, 1, totals(2, hits=1)) == Order()
    record = await hub.get(job_id)
    assert (record["status"], record["progress"], record["cache"]["hits"]) == ("running", 0.5, 1)
    assert await hub.video_path(job_id) is None
    assert await hub.finish(job_id, 1, {"path": "/v.mp4", "bytes": 3}, None)
    assert (await hub.get(job_id))["result"] == {"bytes": 3}
    assert await hub.video_path(job_id) == "/v.mp4"
    assert sample(hub, "warpcache_requests_total", status="succeeded") == 1
    assert sample(hub, "warpcache_cache_hits_total") == 1
    assert sample(hub, "warpcache_cache_size") == 0


async def test_first_in_first_out(hub):
    """Jobs are handed out in the order of their submission; an idle replica gets None in the end."""
    jobs = [await submit(hub), await submit(hub)]
    assert [(await claim(hub))[0] for _ in jobs] == jobs
    assert await hub.claim("replica_1", INFO, 0.01) is None


async def test_waiting_replicas_share_the_jobs(hub):
    """Each new job wakes all idle replicas, and just one of them gets it."""
    claims = [asyncio.create_task(hub.claim(name, INFO, SOON)) for name in ("a", "b")]
    jobs = []
    for count in (1, 2):
        jobs.append(await submit(hub))
        async with asyncio.timeout(SOON):
            while sum(claim.done() for claim in claims) != count:
                await asyncio.sleep(0.005)
    assert sorted(claim.result()["job_id"] for claim in claims) == sorted(jobs)


async def test_queue_limit(hub):
    """Only waiting jobs count: a claimed one makes room."""
    await submit(hub)
    await submit(hub)
    with pytest.raises(QueueFull, match="2 jobs wait"):
        await submit(hub)
    await claim(hub)
    await submit(hub)


@pytest.mark.parametrize("method", ["get", "video_path", "cancel", "wait"])
async def test_unknown_jobs(method, hub):
    """Every method says NotFound."""
    with pytest.raises(NotFound, match="job_x"):
        await getattr(hub, method)("job_x", *([1.0] if method == "wait" else []))


@pytest.mark.parametrize("error", [None, GenerationFailed("no").to_dict()])
async def test_wait_wakes_when_the_job_ends(error, hub):
    """Whoever waits gets the final record; who waits too briefly gets the record as it stands."""
    job_id = await submit(hub)
    assert (await hub.wait(job_id, 0.01))["status"] == "queued"
    waiting = [asyncio.create_task(hub.wait(job_id, 60.0)) for _ in range(3)]
    await claim(hub)
    await hub.finish(job_id, 1, {}, error)
    records = await asyncio.wait_for(asyncio.gather(*waiting), SOON)
    assert {r["status"] for r in records} == {"failed" if error else "succeeded"}


async def test_cancel_of_a_queued_job(hub):
    """It ends at once and is never handed out."""
    job_id = await submit(hub)
    assert (await hub.cancel(job_id))["status"] == "cancelled"
    assert await hub.claim("replica_1", INFO, 0.01) is None
    await hub.cancel(job_id)
    assert sample(hub, "warpcache_requests_total", status="cancelled") == 1


async def test_cancel_of_a_running_job(hub):
    """The replica hears of it by its next report, and says when it has ended."""
    job_id, fence = await submit(hub), 1
    await claim(hub)
    assert (await hub.cancel(job_id))["status"] == "running"
    assert await report(hub, job_id, fence, totals(1)) == Order(cancel=True)
    await hub.finish(job_id, fence, {}, Cancelled("after step 1").to_dict())
    assert (await hub.get(job_id))["status"] == "cancelled"
    assert sample(hub, "warpcache_cancel_latency_seconds_count") == 1


@pytest.mark.parametrize("reason", ["cancel", "lost", "end"])
async def test_an_attempt_hears_of_its_end_at_once(reason, hub):
    """A cancellation, a job given back to the queue or its end ends the wait; without any the attempt keeps on."""
    job_id = await submit(hub)
    await claim(hub)
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
    job_id = await submit(hub)
    await claim(hub)
    await hub.finish(job_id, 1, {}, WorkerLost("gone").to_dict())
    assert await claim(hub, "replica_2") == (job_id, 2)
    before = await hub.get(job_id)
    assert (await report(hub, job_id, 1, totals(3, hits=9))).cancel
    assert not await hub.finish(job_id, 1, {"path": "/stale"}, error)
    assert await hub.get(job_id) == before
    assert await hub.video_path(job_id) is None
    assert sample(hub, "warpcache_cache_hits_total") == 0


async def test_results_expire(reaped, tmp_path):
    """After its time a job and its video are gone; the reaper goes on."""
    job_id = await submit(reaped)
    video = Artifacts(str(tmp_path)).write(job_id, "1.mp4", b"v")
    await claim(reaped)
    await reaped.finish(job_id, 1, {"path": video.url}, None)
    await reaped.configure(replace(CONFIG, result_ttl_s=1e-6))
    with pytest.raises(NotFound):
        await until(reaped, job_id, "gone")
    async with asyncio.timeout(SOON):
        while list(tmp_path.iterdir()):
            await asyncio.sleep(0.005)


async def test_what_storage_keeps_has_its_record(reaped, tmp_path, monkeypatch):
    """Files that can't be taken away are tried again, and known until then; nobody is told of the job any more."""
    monkeypatch.setattr(endings, "AGAIN_S", 0.01)
    refused: list[str] = []
    forget = Artifacts.forget

    def forgets(self: Artifacts, job: str) -> bool:
        if len(refused) < 3:
            refused.append(job)
            return False
        return forget(self, job)

    remove, left = Jobs.remove, []

    async def removes(self: Jobs, job: str) -> None:
        left.append(list(tmp_path.iterdir()))
        await remove(self, job)

    monkeypatch.setattr(Artifacts, "forget", forgets)
    monkeypatch.setattr(Jobs, "remove", removes)
    job_id = await submit(reaped)
    video = Artifacts(str(tmp_path)).write(job_id, "1.mp4", b"v")
    await claim(reaped)
    await reaped.finish(job_id, 1, {"path": video.url}, None)
    await reaped.configure(replace(CONFIG, result_ttl_s=1e-6, checkpoint_every=0))
    with pytest.raises(NotFound):
        await until(reaped, job_id, "gone")
    store = (await reaped._jobs()).store
    async with asyncio.timeout(SOON):
        while await store.get(job_id) is not None:
            await asyncio.sleep(0.005)
    assert refused == [job_id] * 3
    assert left == [[]]


async def test_nobody_waits_for_slow_storage(reaped, tmp_path, monkeypatch):
    """While it hangs, jobs end, leases are watched and queued jobs cancelled."""
    hangs = threading.Event()
    monkeypatch.setattr(Artifacts, "forget", lambda *_: hangs.wait(SOON * 2))
    await reaped.configure(replace(CONFIG, results=str(tmp_path), lease_s=0.05))
    try:
        for _ in range(3):
            job_id = await submit(reaped)
            await claim(reaped)
            async with asyncio.timeout(SOON):
                await reaped.finish(job_id, 1, {"path": f"{tmp_path}/{job_id}/1.mp4"}, None)
        async with asyncio.timeout(SOON):
            lost = await submit(reaped)
            assert await claim(reaped) == (lost, 1)
            assert await claim(reaped) == (lost, 2)
            await reaped.cancel(await submit(reaped))
    finally:
        hangs.set()


@pytest.mark.parametrize("running", [False, True])
async def test_a_deadline_ends_the_job(running, reaped):
    """A waiting job fails at its time, a running one is told to end, and fails for that reason."""
    job_id = (await reaped.submit({"prompt": "a", "deadline_s": 0.05}, {"name": "never"}))["id"]
    if running:
        assert await claim(reaped) == (job_id, 1)
        assert (await reaped.control(job_id, 1, 0, SOON)).cancel
        await reaped.finish(job_id, 1, {}, Cancelled("after step 1").to_dict())
    record = await until(reaped, job_id, "failed")
    assert record["error"]["code"] == "deadline_exceeded"
    assert "0.05 s" in record["error"]["message"]


async def test_pages_go_on_after_a_job_that_is_hidden(hub):
    """It was there when the page before was read."""
    jobs = [await submit(hub) for _ in range(2)]
    await hub.cancel(jobs[0])
    await hub.remove(jobs[0])
    for newest_first, rest in ((False, [jobs[1]]), (True, [])):
        page, more = await hub.page(None, jobs[0], 10, newest_first)
        assert ([record["id"] for record in page], more) == (rest, False)


async def test_hidden_jobs_expire_too(reaped):
    """What a client deleted doesn't stay in the store for ever."""
    job_id = await submit(reaped)
    await reaped.cancel(job_id)
    await reaped.remove(job_id)
    await reaped.configure(replace(CONFIG, result_ttl_s=1e-6))
    store = (await reaped._jobs()).store
    async with asyncio.timeout(SOON):
        while await store.get(job_id) is not None:
            await asyncio.sleep(0.005)


async def test_a_crowd_finds_no_more_room_than_there_is(hub):
    """Requests that come at once are counted one by one."""
    answers = await asyncio.gather(*(submit(hub) for _ in range(8)), return_exceptions=True)
    assert sum(isinstance(answer, QueueFull) for answer in answers) == 6


async def test_checkpoints_go_when_the_job_ends(hub, tmp_path):
    """Whatever its end was."""
    await hub.configure(replace(CONFIG, checkpoint_url=str(tmp_path)))
    for error in (None, GenerationFailed("x").to_dict()):
        job_id = await submit(hub)
        await claim(hub)
        kept = Checkpoints(hub.config.checkpoints, CONFIG.model.version)
        kept.write(job_id, 1, 2, b"state")
        assert kept.newest(job_id) == b"state"
        await hub.finish(job_id, 1, {}, error)
        async with asyncio.timeout(SOON):
            while kept.newest(job_id):
                await asyncio.sleep(0.005)


async def test_checkpoints_go_alone(hub, tmp_path):
    """A video stays when they go, also where both are to be kept in the same place."""
    place = str(tmp_path)
    await hub.configure(replace(CONFIG, results=place, checkpoint_url=place))
    job_id = await submit(hub)
    await claim(hub)
    kept = Checkpoints(hub.config.checkpoints, CONFIG.model.version)
    kept.write(job_id, 1, 2, b"state")
    video = Artifacts(hub.config.artifacts).write(job_id, "1.mp4", b"v")
    await hub.finish(job_id, 1, {"path": video.url}, None)
    async with asyncio.timeout(SOON):
        while kept.newest(job_id):
            await asyncio.sleep(0.005)
    assert video.read() == b"v"


async def test_an_image_is_found_where_it_was_kept(hub, tmp_path):
    """Also after results are kept elsewhere; it goes with its job, wherever it is."""
    await hub.configure(replace(CONFIG, results=str(tmp_path / "old")))
    job_id = new_id()
    image = Artifacts(hub.config.artifacts).write(job_id, "image.png", b"i")
    await hub.submit({"prompt": "a"}, {"name": "never"}, "a", None, job_id, image.url)
    await hub.configure(replace(CONFIG, results=str(tmp_path / "new")))
    assert (await hub.claim("replica_1", INFO, SOON))["image"] == image.url
    assert "image" not in await hub.get(job_id)
    await hub.finish(job_id, 1, {}, None)
    assert await hub.remove(job_id)
    assert list((tmp_path / "old").iterdir()) == []


async def test_health_tells_of_live_replicas_and_jobs(hub):
    """Replicas that asked lately with what they can make, and jobs by status."""
    job_id = await submit(hub)
    await submit(hub)
    assert (await hub.health())["replicas"] == {}
    await claim(hub, "replica_1")
    await hub.finish(job_id, 1, {}, None)
    health = await hub.health()
    assert health["replicas"] == {"replica_1": INFO}
    assert health["jobs"] == {
        "queued": 1, "running": 0, "succeeded": 1, "failed": 0, "cancelled": 0
    }  # fmt: skip
    await hub.configure(replace(CONFIG, lease_s=1e-6))
    assert (await hub.health())["replicas"] == {}
