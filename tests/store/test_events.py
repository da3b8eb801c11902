"""What the streams of events keep to, on each server."""

from dataclasses import replace

from warpcache_ray.store import events
from warpcache_ray.store.events import KEPT, Event
from warpcache_ray.store.jobs import JobStore, Record
from warpcache_ray.store.keys import Place

FIRST = Record("job_1", 1, Place.QUEUED, 1.0, {"n": 1})
NODE = 256
"""More than a server keeps in one node of a stream."""


async def _told(store: JobStore, after: str = events.BEGIN) -> list[tuple[str, dict]]:
    return [(event.kind, event.data) for event in await store.events.read("job_1", after)]


async def test_events_come_back_as_they_were_told(store):
    """In the order of records and single events, with their data; ids rise, and reading goes on after any of them."""
    wanted = [
        ("queued", {}),
        ("running", {"attempt": 1, "text": 'a "猫" \udc00'}),
        ("step", {"cache": {"hits": 1.5, "none": None}}),
        ("step", {}),
        ("ended", {"big": 2**60}),
    ]
    told = [Event(*each) for each in wanted]
    await store.create(FIRST, told[:1])
    await store.swap(replace(FIRST, version=2), told[1:3])
    await store.events.tell("job_1", told[3])
    await store.swap(replace(FIRST, version=3), told[4:])
    assert await _told(store) == wanted
    found = await store.events.read("job_1")
    places = [tuple(map(int, event.id.split("-"))) for event in found]
    assert places == sorted(set(places))
    for place, event in enumerate(found):
        assert await _told(store, event.id) == wanted[place + 1 :]


async def test_a_record_that_is_refused_tells_nothing(store):
    """Neither a second one of its id, nor one that was made from another version than the stored one."""
    await store.create(FIRST, [Event("queued", {})])
    assert not await store.create(FIRST, [Event("queued", {})])
    assert not await store.swap(replace(FIRST, version=3), [Event("running", {})])
    assert await _told(store) == [("queued", {})]


async def test_equal_events_in_a_row_are_one(store):
    """For a single one may be sent again; it is another one if something was told in between."""
    await store.create(FIRST)
    for data in ({"n": 1}, {"n": 1}, {"n": 2}, {"n": 1}):
        await store.events.tell("job_1", Event("step", data))
    assert await _told(store) == [("step", {"n": n}) for n in (1, 2, 1)]


async def test_nothing_is_told_of_a_job_that_is_gone(store, redis):
    """A late event leaves no stream that nobody would remove."""
    await store.create(FIRST, [Event("queued", {})])
    await store.remove("job_1")
    await store.events.tell("job_1", Event("step", {}))
    assert await redis.keys() == []
    assert await _told(store) == []


async def test_a_stream_has_a_limit(store):
    """The oldest events go, those at the end stay."""
    many = [("step", {"n": n}) for n in range(KEPT + 3 * NODE)]
    await store.create(FIRST, [Event(*each) for each in many])
    found, after = [], events.BEGIN
    while batch := await store.events.read("job_1", after):
        found += [(event.kind, event.data) for event in batch]
        after = batch[-1].id
        assert len(batch) <= events.BATCH
    assert KEPT <= len(found) <= KEPT + NODE
    assert found == many[-len(found) :]
