"""What the store of audits keeps to, on each server."""

import pytest
from redis.asyncio import Redis

from warpcache_ray.errors import Unavailable
from warpcache_ray.store.audits import AuditStore, Tally
from warpcache_ray.store.events import Event
from warpcache_ray.store.jobs import Record
from warpcache_ray.store.keys import Place

SLOT = "default-0123456789abcdef"
FOUND = {"psnr": 30.5, "ssim": 0.99}


@pytest.fixture
def audits(redis: Redis) -> AuditStore:
    return AuditStore(redis, "app")


async def _jobs(store, *ids: str) -> None:
    for id in ids:
        await store.create(Record(id, 1, Place.ENDED, 1.0, {}))


async def test_audits_are_counted_by_version(store, audits):
    """Requests and misses of each version by itself; what was found stands with the job."""
    await _jobs(store, "a", "b", "c")
    assert await audits.count("a", SLOT, 1, True, FOUND) == Tally(1, 0)
    assert await audits.count("b", SLOT, 1, False, FOUND) == Tally(2, 1)
    assert await audits.count("c", SLOT, 12, False, FOUND) == Tally(1, 1)
    assert await audits.tally(SLOT, 1) == Tally(2, 1)
    assert await audits.tally(SLOT, 2) == Tally()
    assert await audits.versions() == [(SLOT, 1), (SLOT, 12)]
    assert await audits.audited("b") == FOUND | {"kept": False}
    assert await audits.audited("unknown") is None


async def test_a_job_counts_once(store, audits, redis):
    """Whoever audits it again, by whatever version: two replicas, or a call that is sent again."""
    await _jobs(store, "a")
    await audits.count("a", SLOT, 1, True, FOUND)
    another = AuditStore(redis, "app")
    assert await another.count("a", SLOT, 1, False, FOUND) == Tally(1, 0)
    assert await another.audited("a") == FOUND | {"kept": True}


async def test_a_lost_answer_counts_once(store, server, loses_one_answer):
    """The server has counted, the connection breaks: the client sends it again, and hears the same."""
    await _jobs(store, "a")
    async with loses_one_answer(str(server.socket), b"EVALSHA", b"default-") as (redis, lost):
        audits = AuditStore(redis, "app")
        assert await audits.count("a", SLOT, 1, False, FOUND) == Tally(1, 1)
        assert lost


async def test_a_job_that_is_gone_counts_nothing(store, audits, redis):
    """And leaves nothing behind; the mark of one that was counted goes with its record, its count stays."""
    assert await audits.count("a", SLOT, 1, False, FOUND) is None
    assert await redis.keys() == []
    await _jobs(store, "a")
    await audits.count("a", SLOT, 1, False, FOUND)
    await store.remove("a")
    assert await audits.audited("a") is None
    assert await audits.tally(SLOT, 1) == Tally(1, 1)


async def test_a_record_goes_on_with_its_mark(store, audits):
    """Later changes of the job leave the mark where it is."""
    await _jobs(store, "a")
    await audits.count("a", SLOT, 1, True, FOUND)
    assert await store.swap(Record("a", 2, Place.ENDED, 1.0, {"removed": True}))
    assert await audits.audited("a") == FOUND | {"kept": True}


async def test_tallies_outlive_the_server(store, audits, server):
    """Counts and condemnations are there after its restart."""
    await _jobs(store, "a")
    await audits.count("a", SLOT, 1, False, FOUND)
    await audits.condemn(SLOT, 1)
    server.stop()
    with pytest.raises(Unavailable):
        await audits.tally(SLOT, 1)
    server.start()
    assert await audits.tally(SLOT, 1) == Tally(1, 1, broken=True)


async def test_events_are_told_newest_first(audits):
    """As many as one asks for; one that is sent again is the one that is there."""
    for n in (1, 1, 2, 3):
        await audits.tell(Event("missed", {"n": n}))
    assert [event.data["n"] for event in await audits.events(2)] == [3, 2]
    assert [event.data["n"] for event in await audits.events(9)] == [3, 2, 1]
