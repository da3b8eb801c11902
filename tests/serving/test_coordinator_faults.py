"""The coordinator where something is lost: attempts, answers, its store, itself; and the epochs that follow."""

import asyncio
import logging
from dataclasses import replace

import pytest
from hubs import CONFIG, INFO, SOON, claim, report, sample, submit, totals, until
from processes import process_of

from warpcache_ray.config import StoreConfig
from warpcache_ray.errors import (
    Cancelled,
    NotFound,
    Superseded,
    Unavailable,
    WorkerLost,
)
from warpcache_ray.serving import jobs
from warpcache_ray.serving.coordinator import Coordinator
from warpcache_ray.serving.lifecycle import Order
from warpcache_ray.store import connection
from warpcache_ray.store.jobs import Place, Record
from warpcache_ray.store.server import EmbeddedServer


async def test_lost_twice_has_failed(hub):
    """A worker lost in each of two attempts fails the job as worker_lost; the end counts once."""
    job_id = await submit(hub)
    for fence in (1, 2):
        assert await claim(hub) == (job_id, fence)
        assert await hub.finish(job_id, fence, {}, WorkerLost("x").to_dict())
    record = await hub.get(job_id)
    assert (record["status"], record["error"]["code"]) == ("failed", "worker_lost")
    assert sample(hub, "warpcache_requests_total", status="failed") == 1


async def test_a_lease_that_is_over_frees_the_job(reaped):
    """A silent replica's job goes to another one, and fails when that one is silent too."""
    await reaped.configure(replace(CONFIG, lease_s=0.02))
    job_id = await submit(reaped)
    assert await claim(reaped, "silent") == (job_id, 1)
    assert await claim(reaped, "silent too") == (job_id, 2)
    assert (await reaped.wait(job_id, SOON))["error"]["code"] == "worker_lost"


async def test_an_epoch_of_the_model_reaches_all_attempts(hub):
    """Attempts under way hear of it at once, later ones begin with it; jobs that ended keep theirs."""
    jobs = [await submit(hub), await submit(hub)]
    for _ in jobs:
        await claim(hub)
    await hub.finish(jobs[1], 1, {}, None)
    waiting = asyncio.create_task(hub.control(jobs[0], 1, 0, 60.0))
    epoch = await hub.invalidate(None)
    assert await asyncio.wait_for(waiting, SOON) == Order(epoch)
    assert await report(hub, jobs[0], 1, totals(1)) == Order(epoch)
    await submit(hub)
    assert (await hub.claim("replica_1", INFO, SOON))["epoch"] == epoch
    assert (await hub.get(jobs[1]))["epoch"] == 0


async def test_an_epoch_of_one_job_is_its_own(hub):
    """The other one goes on in the old; a job that isn't there is refused."""
    jobs = [await submit(hub), await submit(hub)]
    for _ in jobs:
        await claim(hub)
    epoch = await hub.invalidate(jobs[0])
    assert await report(hub, jobs[0], 1, totals(1)) == Order(epoch)
    assert await report(hub, jobs[1], 1, totals(1)) == Order()
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


async def test_an_outcome_that_is_told_twice_is_published_once(hub):
    """The first answer was lost: the second says that it was published, so nobody takes the video away."""
    job_id = await submit(hub)
    await claim(hub)
    for _ in range(2):
        assert await hub.finish(job_id, 1, {"path": "/v.mp4"}, None)
    assert await hub.video_path(job_id) == "/v.mp4"
    assert sample(hub, "warpcache_requests_total", status="succeeded") == 1


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
            await submit(reaped)
    async with asyncio.timeout(SOON):
        while await jobs.store.get(made[0]) is not None:
            await asyncio.sleep(0.005)


async def test_an_attempt_that_spoke_meanwhile_isnt_lost(hub, monkeypatch):
    """The reaper waited for the store; the lease was renewed before it had its say."""
    job_id = await submit(hub)
    await claim(hub)
    await report(hub, job_id, 1, totals(1))
    assert await (await hub._endings()).lose(job_id, 1, silent_s=15.0)
    assert (await hub.get(job_id))["status"] == "running"
    assert sample(hub, "warpcache_attempts_ended_total", end="lost") == 0


async def test_reports_dont_stand_in_line_for_the_store(hub):
    """While a change is being stored they count at once."""
    job_id = await submit(hub)
    await claim(hub)
    jobs = await hub._jobs()
    async with jobs._changing, asyncio.timeout(SOON):
        assert await report(hub, job_id, 1, totals(2)) == Order()
    assert (await hub.get(job_id))["step"] == 2


async def test_the_reaper_survives_what_it_meets(reaped, monkeypatch, caplog):
    """An error over one job doesn't end the watch over all."""
    caplog.set_level(logging.ERROR)
    job_id = await submit(reaped)
    await claim(reaped)
    with monkeypatch.context() as patch:
        patch.setattr("warpcache_ray.serving.admission.expire", lambda *_: 1 / 0)
        async with asyncio.timeout(SOON):
            while "failed" not in caplog.text:
                await asyncio.sleep(0.005)
    await reaped.configure(replace(CONFIG, lease_s=0.02))
    await until(reaped, job_id, "queued")


async def test_a_lost_attempt_has_its_own_epoch_and_the_checkpoint(hub):
    """The next one starts there, and nothing that the lost one kept counts."""
    job_id = await submit(hub)
    await claim(hub)
    await report(hub, job_id, 1, totals(3, kept=2))
    await hub.finish(job_id, 1, {}, WorkerLost("x").to_dict())
    again = await hub.claim("replica_2", INFO, SOON)
    assert (await hub.get(job_id))["checkpoint_step"] == 2
    assert again["epoch"] > 0
    assert sample(hub, "warpcache_attempts_ended_total", end="lost") == 1


async def test_a_new_coordinator_knows_what_the_old_one_knew(hub, application, store_server):
    """Killed and started anew, it has all jobs; the attempt under way reports to it and publishes as if nothing was."""
    ended, running = await submit(hub), await submit(hub)
    assert [(await claim(hub))[0] for _ in range(2)] == [ended, running]
    queued = await submit(hub)
    await hub.finish(ended, 1, {"path": "/v.mp4", "bytes": 3}, None)
    await report(hub, running, 1, totals(2, kept=2))
    epoch = await hub.invalidate(None)

    async def told(hub):
        # But for times: they pass.
        return [await hub.get(job_id) | {"eta_s": None} for job_id in (ended, queued)]

    before = await told(hub)

    fresh = Coordinator(application, CONFIG, store_server)
    assert await told(fresh) == before
    assert fresh.epoch == epoch
    assert (await fresh.get(running))["status"] == "running"
    assert await report(fresh, running, 1, totals(3)) == Order(epoch)
    assert (await fresh.health())["replicas"] == {"replica_1": INFO}
    assert await claim(fresh, "replica_2") == (queued, 1)
    assert await fresh.finish(running, 1, {"bytes": 4}, None)
    assert (await fresh.get(running))["status"] == "succeeded"


async def test_the_stores_url_may_be_in_the_environment(
    hub, application, store_server, monkeypatch
):
    """Where no status and no log shows it."""
    job_id = await submit(hub)
    monkeypatch.setenv("JOBS_URL", store_server.url)
    config = replace(CONFIG, store=StoreConfig(url_env="JOBS_URL"))
    assert (await Coordinator(application, config).get(job_id))["status"] == "queued"


async def test_of_two_coordinators_the_older_one_steps_back(
    reaped, application, store_server, caplog
):
    """Its node was cut off and is back: what it still hears of changes nothing, and it soon answers nobody."""
    job_id = await submit(reaped)
    assert await claim(reaped) == (job_id, 1)
    heir = Coordinator(application, CONFIG, store_server)
    await heir.cancel(job_id)
    with pytest.raises(Superseded):
        await reaped.finish(job_id, 1, {"path": "/stale"}, None)
    with pytest.raises(Superseded, match="another coordinator of this application"):
        await reaped.get(job_id)
    async with asyncio.timeout(SOON):
        while not reaped._loops[1]._task.done():
            await asyncio.sleep(0.005)
    assert await report(heir, job_id, 1, totals(1)) == Order(cancel=True)
    assert await heir.finish(job_id, 1, {}, Cancelled("cancelled").to_dict())
    assert (await heir.get(job_id))["status"] == "cancelled"


async def test_one_that_is_asked_nothing_hears_of_its_successor(reaped, application, store_server):
    """By itself, so that whoever asks it next isn't told what was."""
    job_id = await submit(reaped)
    await Coordinator(application, CONFIG, store_server).health()
    store = (await reaped._opened).jobs.store
    async with asyncio.timeout(SOON):
        while not store.superseded:
            await asyncio.sleep(0.005)
    with pytest.raises(Superseded):
        await reaped.get(job_id)


async def test_a_record_of_another_version_is_left_alone(hub, application, store_server, caplog):
    """It stops nobody: the others are loaded, and it stays in the store."""
    caplog.set_level(logging.WARNING)
    job_id = await submit(hub)
    store = (await hub._jobs()).store
    await store.create(Record("job_old", 1, Place.QUEUED, 0.0, {"id": "job_old", "mood": "fine"}))
    fresh = Coordinator(application, CONFIG, store_server)
    assert await claim(fresh) == (job_id, 1)
    assert "record job_old can't be read" in caplog.text
    assert await store.get("job_old") is not None


async def test_a_claim_whose_answer_was_lost_is_repeated(hub):
    """A replica that asks for a job has none: what it was given before is given to it again, in the same attempt."""
    job_id = await submit(hub)
    first = await hub.claim("replica_1", INFO, SOON)
    await submit(hub)
    assert await hub.claim("replica_1", INFO, SOON) == first
    assert (await claim(hub, "replica_2"))[0] != job_id


async def test_a_retired_replica_gets_no_job(hub):
    """Neither one that it waits for already nor later ones; it counts as ready no more."""
    waiting = asyncio.create_task(hub.claim("replica_1", INFO, 60.0))
    await asyncio.sleep(0.05)
    await hub.retire("replica_1")
    assert await asyncio.wait_for(waiting, SOON) is None
    job_id = await submit(hub)
    assert await hub.claim("replica_1", INFO, 0.01) is None
    assert (await hub.health())["replicas"] == {}
    assert await claim(hub, "replica_2") == (job_id, 1)


async def test_a_job_that_is_handed_back_loses_nothing(hub):
    """It is next, in a new epoch and from its checkpoint, and none of its attempts (2 here) is used up; its followers
    are told. The attempt that gave it back can publish nothing."""
    job_id = await submit(hub)
    for fence in (1, 2, 3):
        assert await claim(hub) == (job_id, fence)
        await report(hub, job_id, fence, totals(fence, kept=fence))
        assert await hub.hand_back(job_id, fence)
        assert not await hub.finish(job_id, fence, {"path": "/stale"}, None)
    record = await hub.get(job_id)
    assert record["status"] == "queued"
    assert [attempt["end"] for attempt in record["attempts"]] == ["handed_back"] * 3
    assert (record["checkpoint_step"], record["queue_position"]) == (3, 1)
    assert (await hub.claim("replica_9", INFO, SOON))["epoch"] > 0
    kinds = [event.kind for event in await hub.events(job_id, "0", SOON)]
    assert kinds.count("handed_back") == 3
    assert "lost" not in kinds
    await hub.finish(job_id, 4, {}, WorkerLost("x").to_dict())
    assert await claim(hub) == (job_id, 5)
    await hub.finish(job_id, 5, {}, WorkerLost("x").to_dict())
    assert (await hub.get(job_id))["error"]["message"].endswith("in attempt 2 of 2")


async def test_a_cancelled_job_isnt_handed_back(hub):
    """Its attempt ended for both reasons; the client's counts."""
    job_id = await submit(hub)
    await claim(hub)
    await hub.cancel(job_id)
    assert await hub.hand_back(job_id, 1)
    assert (await hub.get(job_id))["status"] == "cancelled"
    assert not await hub.hand_back(job_id, 1)


async def test_only_so_many_ended_jobs_are_kept(reaped):
    """The first to end go first; those that haven't ended stay."""
    ended = [await submit(reaped) for _ in range(2)]
    for job_id in reversed(ended):
        await reaped.cancel(job_id)
    waiting = await submit(reaped)
    await reaped.configure(replace(CONFIG, keep_jobs=1))
    with pytest.raises(NotFound):
        await until(reaped, ended[1], "gone")
    assert (await reaped.get(ended[0]))["status"] == "cancelled"
    assert (await reaped.get(waiting))["status"] == "queued"


async def test_a_store_that_hangs_keeps_nobody_waiting(application, tmp_path, monkeypatch):
    """Once it is known to be away, new jobs are refused at once, not after what a command may take; and taken in when
    it is back."""
    monkeypatch.setattr(connection, "TIMEOUT_S", 1.0)
    monkeypatch.setattr(jobs, "PROBE_S", 0.01)
    server = EmbeddedServer(tmp_path / "store")
    hub = Coordinator(application, CONFIG, server)
    await submit(hub)
    process = process_of(str(tmp_path))
    process.suspend()
    try:
        with pytest.raises(Unavailable):
            await submit(hub)
        async with asyncio.timeout(SOON):
            for _ in range(20):
                with pytest.raises(Unavailable, match="doesn't answer"):
                    await submit(hub)
    finally:
        process.resume()
    monkeypatch.setattr(jobs, "PROBE_S", SOON)
    await submit(hub)
    server.stop()


async def test_a_store_that_comes_back_finds_no_job_lost(application, tmp_path, monkeypatch):
    """Who ended a job while it was away could not tell: the lease counts anew from its return."""
    monkeypatch.setattr(connection, "TIMEOUT_S", 0.5)
    server = EmbeddedServer(tmp_path / "store")
    hub = Coordinator(application, replace(CONFIG, lease_s=1.0), server)
    job_id = await submit(hub)
    await claim(hub)
    process = process_of(str(tmp_path))
    process.suspend()
    try:
        await asyncio.sleep(2.0)
        with pytest.raises(Unavailable):
            await hub.cancel(job_id)
    finally:
        process.resume()
    await asyncio.sleep(0.7)
    assert (await hub.get(job_id))["status"] == "running"
    await until(hub, job_id, "queued")
    server.stop()
