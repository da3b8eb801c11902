"""Which policy jobs get as what is published changes: over a coordinator, its store and its disk."""

import asyncio
import logging
from dataclasses import replace

import pytest
from documents import KEY, SLOT, document
from hubs import CONFIG, INFO, SOON, claim, exported, report, totals

from warpcache_ray.config import StoreConfig
from warpcache_ray.errors import WorkerLost
from warpcache_ray.policy_slots import in_canary, slot_id
from warpcache_ray.policy_spec import describe_policy
from warpcache_ray.serving import registry as module
from warpcache_ray.serving.coordinator import Coordinator
from warpcache_ray.serving.last_known import LastKnown
from warpcache_ray.serving.lifecycle import new_id
from warpcache_ray.store.connection import connect
from warpcache_ray.store.policies import PolicyStore
from warpcache_ray.store.published import Published
from warpcache_ray.store.server import EmbeddedServer

ME = ("me", "because")
FOLLOW_S = 1.0
"""How soon all replicas have to follow."""


@pytest.fixture
def config(tmp_path):
    """With a disk of its own."""
    return replace(
        CONFIG, results=str(tmp_path), model=replace(CONFIG.model, limits=CONFIG.model.limits)
    )


@pytest.fixture
async def hub(application, store_server, config):
    """A coordinator that knows of an idle replica."""
    hub = Coordinator(application, config, store_server)
    await hub.claim("replica_1", INFO, 0.01)
    return hub


@pytest.fixture
async def desk(application, store_server):
    """What an operator changes in the store, from another process."""
    redis = connect(store_server.url)
    yield Published(PolicyStore(redis, application))
    await redis.aclose()


async def put(desk, calls, quality="default", **more):
    return await desk.publish(quality, document(calls).to_dict(), *ME, **more)


async def wanted(hub, quality=None, job_id=None, **request):
    """The record of a new job for a quality."""
    return await hub.submit({"prompt": "a", **request}, {"quality": quality}, job_id=job_id)


async def origin(hub, quality=None, job_id=None):
    """Where a new job's policy would come from."""
    choice = hub.registry.submitted({"quality": quality}, {"prompt": "a"}, job_id or new_id())
    return choice.origin["source"], choice.origin["version"]


async def until(hub, *expected, job_id=None, within_s=FOLLOW_S):
    """As soon as new jobs' policies come from there."""
    async with asyncio.timeout(within_s):
        while await origin(hub, job_id=job_id) != expected:
            await asyncio.sleep(0.005)


async def test_the_next_job_has_what_is_published(hub, desk):
    """Within a second and without a word to the service; a job that waits has it too, one that runs keeps its own."""
    running = (await wanted(hub))["id"]
    job, fence = await claim(hub)
    waiting = (await wanted(hub))["id"]
    assert (await hub.get(waiting))["policy_origin"]["source"] == "configuration"
    await put(desk, 4)
    await until(hub, "registry", 1)
    attempt = await hub.claim("replica_2", INFO, SOON)
    assert (attempt["job_id"], attempt["policy"]) == (waiting, document(4).policy)
    record = await hub.get(waiting)
    assert record["policy"]["max_calls"] == 4
    assert record["policy_origin"] == {
        "source": "registry",
        "quality": "default",
        "slot": SLOT,
        "version": 1,
        "why": "it is active",
    }
    await report(hub, job, fence, totals(2))
    assert (await hub.get(running))["policy"]["name"] == CONFIG.default_policy.name
    text = exported(await hub.metrics_text())
    for source in ("registry", "configuration"):
        assert text[f'warpcache_policies_served_total{{source="{source}"}}'] == 1
    assert text[f'warpcache_policy_info{{part="active",slot="{SLOT}",version="1"}}'] == 1


async def test_a_resumed_attempt_keeps_the_version_it_began_with(hub, desk):
    """However often it is lost, and whatever is published in the meantime."""
    await put(desk, 4)
    await until(hub, "registry", 1)
    job_id = (await wanted(hub))["id"]
    job, fence = await claim(hub, "replica_1")
    await put(desk, 3)
    await until(hub, "registry", 2)
    assert await hub.finish(job, fence, {}, WorkerLost("gone").to_dict())
    attempt = await hub.claim("replica_1", INFO, SOON)
    assert (attempt["job_id"], attempt["fence"]) == (job_id, 2)
    assert attempt["policy"] == document(4).policy
    assert (await hub.get(job_id))["policy_origin"]["version"] == 1


async def test_a_canary_has_its_share_of_the_jobs(hub, desk):
    """Those whose ids say so, each whenever it is asked; withdrawn, it has none."""
    await put(desk, 4)
    await put(desk, 3, share=25)
    ids = [f"job_{number}" for number in range(400)]
    chosen = next(job for job in ids if in_canary(job, 25))
    await until(hub, "canary", 2, job_id=chosen)
    found = {job: await origin(hub, job_id=job) for job in ids}
    assert found == {job: ("canary", 2) if in_canary(job, 25) else ("registry", 1) for job in ids}
    await wanted(hub, job_id=chosen)
    attempt = await hub.claim("replica_1", INFO, SOON)
    assert attempt["policy"]["max_calls"] == 3
    assert "25 %" in (await hub.get(chosen))["policy_origin"]["why"]
    text = exported(await hub.metrics_text())
    assert text[f'warpcache_policy_info{{part="canary",slot="{SLOT}",version="2"}}'] == 1
    await desk.withdraw(SLOT, *ME)
    await until(hub, "registry", 1, job_id=chosen)
    assert 'version="2"' not in await hub.metrics_text()


async def test_qualities_have_slots_of_their_own(hub, desk):
    """Names theirs, numbers the least that is enough, other sizes none, and a request's own policy nothing of it."""
    await put(desk, 4)
    await put(desk, 6, quality="high")
    await hub.registry.refresh()
    assert (await wanted(hub, "high"))["policy"]["max_calls"] == 6
    assert (await wanted(hub, 0.97))["policy"]["max_calls"] == 4
    await hub.cancel((await hub.page(None, None, 1, True))[0][0]["id"])
    other = await wanted(hub, height=48)
    assert other["policy_origin"]["source"] == "configuration"
    assert "profiled for height = 32, not 48" in other["policy_origin"]["why"]


@pytest.fixture
def often(monkeypatch):
    """Coordinators that begin from here on look at the store again and again."""
    monkeypatch.setattr(module, "POLL_S", 0.05)


async def test_the_store_goes_away_and_comes_back_empty(tmp_path, config, often):
    """Jobs have the last version that was active: while the store is away, when it has lost everything, and after a
    restart of the coordinator; a canary that nobody can withdraw has none. What is published then goes first."""
    server = EmbeddedServer(tmp_path / "redis")
    server.start()
    try:
        config = replace(config, store=StoreConfig(server.url))
        hub = Coordinator("app", config)
        await hub.claim("replica_1", INFO, 0.01)
        redis = connect(server.url)
        desk = Published(PolicyStore(redis, "app"))
        await put(desk, 4)
        await put(desk, 3, share=99)
        await until(hub, "canary", 2, job_id="job_1")
        running = (await wanted(hub, job_id="job_2"))["id"]
        job, fence = await claim(hub, "replica_1")
        server.stop()
        await until(hub, "last_known_good", 1, job_id="job_1", within_s=SOON)
        assert (await report(hub, job, fence, totals(2))).cancel is False
        server.start()
        await until(hub, "canary", 2, job_id="job_1", within_s=SOON)
        assert (await hub.get(running))["policy"]["max_calls"] == 3
        await redis.flushall()
        await until(hub, "last_known_good", 1, within_s=SOON)
        fresh = Coordinator("app", config)
        await fresh.claim("replica_1", INFO, 0.01)
        assert await origin(fresh) == ("last_known_good", 1)
        record = await wanted(fresh)
        assert record["policy"]["max_calls"] == 4
        assert "has none that can be used; version 1" in record["policy_origin"]["why"]
        await put(desk, 5)
        await until(fresh, "registry", 1)
        kept = LastKnown(config.known_policies / "app")
        kept.load()
        assert kept.found == {SLOT: (1, document(5))}
        await desk.rollback(SLOT, *ME)
        await until(fresh, "configuration", None)
        assert not list((config.known_policies / "app").iterdir())
        await redis.aclose()
    finally:
        server.stop()


async def test_files_stand_behind_the_store(application, store_server, config, desk):
    """What is published goes before them; each serves its own key alone."""
    files = {"default": [document(7).to_dict(), document(8, steps=20).to_dict()]}
    hub = Coordinator(application, replace(config, policies=files), store_server)
    await hub.claim("replica_1", INFO, 0.01)
    for steps, calls in ((8, 7), (20, 8)):
        record = await wanted(hub, num_inference_steps=steps)
        assert (record["policy"]["max_calls"], record["policy_origin"]["source"]) == (calls, "file")
    await put(desk, 4)
    await until(hub, "registry", 1)
    await hub.configure(replace(config, policies={}))
    await desk.rollback(SLOT, *ME)
    await until(hub, "configuration", None)


async def test_what_cant_be_used_is_left_aside(hub, desk, caplog):
    """A version of another model's in the slot, put there past all checks: the last good one serves, and it is said."""
    await put(desk, 4)
    await until(hub, "registry", 1)
    foreign = document(2, model="Toy-0-2").to_dict()
    await desk.store.publish(await desk.store.read(SLOT), foreign, *ME)
    await until(hub, "last_known_good", 1)
    assert (
        f"version 2 of {SLOT} is refused: the policy in slot '{SLOT}' was profiled for"
        in caplog.text
    )


async def test_the_store_knows_which_models_are_served(often, hub, desk):
    """So that nobody publishes for another one by mistake."""
    async with asyncio.timeout(SOON):
        while await desk.store.served() != [KEY.model]:
            await asyncio.sleep(0.01)


async def test_a_disk_that_fails_costs_nothing(hub, desk, config, caplog):
    """Jobs are served; and what is damaged there is left aside."""
    caplog.set_level(logging.WARNING)
    folder = config.known_policies
    folder.parent.mkdir(parents=True)
    folder.write_text("no folder")
    await put(desk, 4)
    await until(hub, "registry", 1)
    assert "isn't kept on disk" in caplog.text
    folder.unlink()
    (folder / hub.application).mkdir(parents=True)
    (folder / hub.application / f"{slot_id('high', KEY)}.v3.json").write_text("{")
    fresh = Coordinator(hub.application, config, hub._server)
    await fresh.claim("replica_1", INFO, 0.01)
    assert "a last known policy can't be read" in caplog.text
    assert await origin(fresh, "high") == ("configuration", None)


async def test_before_a_replica_is_there(application, store_server, config, desk):
    """Nobody knows what model is served: what a request would be given is what the configuration has."""
    await put(desk, 4)
    offered = await Coordinator(application, config, store_server).offered({})
    assert {each["origin"]["source"] for each in offered.values()} == {"configuration"}
    assert offered["default"]["policy"] == describe_policy(config.default_policy)
