"""The store's contract, on each server."""

import asyncio
from dataclasses import replace

import pytest

from warpcache_ray.errors import Superseded, Unavailable
from warpcache_ray.store import jobs
from warpcache_ray.store.events import Event
from warpcache_ray.store.jobs import JobStore, Place, Record

SOON = 5.0
FIRST = Record("job_1", 1, Place.QUEUED, 1732199999.123456, {"prompt": "a 猫", "fence": 0})


QUEUED = Event("queued", {})


def _next(record: Record, place: Place, **body) -> Record:
    return replace(record, version=record.version + 1, place=place, body=record.body | body)


async def _places(store: JobStore) -> dict[str, list[str]]:
    return {place.value: await store.ids(place) for place in Place}


async def test_a_record_comes_back_as_it_was_stored(store):
    """Id, version, place, score to the last digit and body; an unknown one is None."""
    body = {"text": 'a "猫" \udc00', "none": None, "list": [1, 2.5, {}], "big": 2**60, "empty": []}
    record = replace(FIRST, body=body)
    assert await store.create(record)
    assert await store.get(record.id) == record
    assert await store.get("job_2") is None


async def test_an_id_is_created_once(store):
    """A second record of the same id is refused, also after swaps; the first one stays."""
    assert await store.create(FIRST)
    assert not await store.create(replace(FIRST, place=Place.ENDED, body={}))
    swapped = _next(FIRST, Place.RUNNING)
    assert await store.swap(swapped)
    assert not await store.create(FIRST)
    assert await store.load() == [swapped]


async def test_a_record_is_in_one_place(store):
    """Each swap moves it, there and back again."""
    record = FIRST
    await store.create(record)
    for place in (Place.RUNNING, Place.QUEUED, Place.RUNNING, Place.RUNNING, Place.ENDED):
        record = _next(record, place)
        assert await store.swap(record)
        expected = {p.value: ["job_1"] if p is place else [] for p in Place}
        assert await _places(store) == expected
        assert await store.get("job_1") == record


@pytest.mark.parametrize("version", [1, 2, 4])
async def test_a_swap_needs_the_version_before(version, store):
    """A record that was made from another version than the stored one changes nothing."""
    stored = _next(FIRST, Place.RUNNING)
    await store.create(FIRST)
    await store.swap(stored)
    assert not await store.swap(replace(stored, version=version, place=Place.ENDED))
    assert await store.get("job_1") == stored
    assert await _places(store) == {"queued": [], "running": ["job_1"], "ended": []}


async def test_a_swap_needs_a_record(store):
    """A record that was removed, or never was, doesn't come into being by a swap."""
    assert not await store.swap(_next(FIRST, Place.RUNNING))
    assert not await store.swap(replace(FIRST, version=1))
    assert await store.load() == []


@pytest.mark.parametrize("alike", [True, False])
async def test_one_of_two_writers_wins(alike, store):
    """Of two swaps from the same version just one is stored, even when both would store the same."""
    record = FIRST
    await store.create(record)
    for _ in range(20):
        rivals = [_next(record, Place.RUNNING, by=0 if alike else n) for n in range(2)]
        won = await asyncio.gather(*(store.swap(rival) for rival in rivals))
        assert sorted(won) == [False, True]
        record = rivals[won.index(True)]
        assert await store.get("job_1") == record


async def test_one_of_two_creators_wins(store):
    """Of two records with the same id just one is stored."""
    rivals = [replace(FIRST, body={"by": n}) for n in range(2)]
    won = await asyncio.gather(*(store.create(rival) for rival in rivals))
    assert sorted(won) == [False, True]
    assert await store.load() == [rivals[won.index(True)]]


async def test_a_place_is_ordered_by_score(store):
    """Ids come smallest score first, and by ranks; a swap may change the score."""
    for score in (3.0, 1.0, 2.0):
        await store.create(replace(FIRST, id=f"job_{score:.0f}", score=score))
    assert await store.ids(Place.QUEUED) == ["job_1", "job_2", "job_3"]
    assert await store.ids(Place.QUEUED, 0, 0) == ["job_1"]
    assert await store.ids(Place.QUEUED, -2) == ["job_2", "job_3"]
    await store.swap(replace(FIRST, id="job_1", version=2, score=9.0))
    assert await store.ids(Place.QUEUED) == ["job_2", "job_3", "job_1"]


async def test_a_score_is_a_number(store):
    """What can't be ordered isn't stored at all."""
    with pytest.raises(Exception, match="not a valid float"):
        await store.create(replace(FIRST, score=float("nan")))
    assert (await store.get("job_1"), await store.load()) == (None, [])


async def test_load_has_all_records_in_order(store, monkeypatch):
    """By score across places and batches, and by id where scores are equal."""
    monkeypatch.setattr(jobs, "BATCH", 2)
    places = [Place.ENDED, Place.QUEUED, Place.RUNNING, Place.QUEUED, Place.ENDED]
    ids_and_scores = [("d", 0.5), ("e", 0.5), ("b", 1.0), ("c", 1.0), ("a", 10.0)]
    records = [Record(id, 1, p, s, {}) for p, (id, s) in zip(places, ids_and_scores, strict=True)]
    for record in reversed(records):
        await store.create(record)
    assert await store.load() == records


async def test_remove(store, redis):
    """Nothing is left of the record and its events, and its id is free again; the others stay."""
    other = replace(FIRST, id="job_2")
    await store.create(other)
    before = set(await redis.keys())
    await store.create(FIRST, [QUEUED])
    await store.remove("job_1")
    await store.remove("job_1")
    assert set(await redis.keys()) == before
    assert await store.load() == [other]
    assert await store.create(FIRST)


async def test_epochs_rise(store):
    """Each is larger than any before, whoever raises it; that of the model is the last that was raised for all."""
    assert await store.model_epoch() == 0
    raised = await asyncio.gather(*(store.raise_epoch(of_model=True) for _ in range(5)))
    assert len(set(raised)) == 5
    assert await store.raise_epoch() > max(raised)
    assert await store.model_epoch() == max(raised)


async def test_a_newer_generation_is_the_only_writer(store, redis):
    """What an older one creates or swaps changes nothing and tells nothing, be its version the right one; it can see
    so for itself, and read. The newest one isn't disturbed."""
    for _ in range(2):
        await store.open()
        await store.hold()
    await store.create(FIRST, [QUEUED])
    newest, never_opened = JobStore(redis, "app"), JobStore(redis, "app")
    await newest.open()
    swapped = _next(FIRST, Place.RUNNING)
    for old in (store, never_opened):
        writes = old.swap(swapped, [QUEUED]), old.create(replace(FIRST, id="job_2")), old.hold()
        for write in writes:
            with pytest.raises(Superseded, match="another coordinator"):
                await write
        assert old.superseded
    assert await store.load() == [FIRST]
    assert len(await store.events.read("job_1")) == 1
    assert await newest.swap(swapped)
    await newest.hold()
    assert not newest.superseded


async def test_applications_share_nothing(store, redis):
    """Neither records nor events nor epoch of one are another's; each application's are in one cluster slot."""
    other = JobStore(redis, "other")
    for each, job in ((store, FIRST), (other, replace(FIRST, body={}))):
        assert await each.create(job, [QUEUED])
        assert await each.raise_epoch() == 1
    await other.remove("job_1")
    assert await store.load() == [FIRST]
    assert len(await store.events.read("job_1")) == 1
    tags = {key.partition("}")[0] for key in await redis.keys()}
    assert tags == {"{warpcache:app", "{warpcache:other"}


async def test_a_server_that_forgot_the_scripts(store, redis):
    """They are sent again, as they must be after a restart."""
    await store.create(FIRST)
    await redis.script_flush()
    assert await store.swap(_next(FIRST, Place.RUNNING))


async def test_a_full_server_is_unavailable_for_writes(store, redis):
    """Every write says so and changes nothing; records can be read and removed, which makes room."""
    await store.create(FIRST, [QUEUED])
    await redis.config_set("maxmemory", 1)
    second = replace(FIRST, id="job_2")
    swapped = _next(FIRST, Place.RUNNING)
    writes = store.create(second), store.swap(swapped), store.raise_epoch()
    for write in (*writes, store.events.tell("job_1", Event("step", {}))):
        with pytest.raises(Unavailable, match="memory is full"):
            await write
    assert await store.load() == [FIRST]
    assert await _places(store) == {"queued": ["job_1"], "running": [], "ended": []}
    assert [event.kind for event in await store.events.read("job_1")] == ["queued"]
    await store.remove("job_1")
    await redis.config_set("maxmemory", 0)
    assert await store.create(second)
    assert await store.load() == [second]


async def test_decisions_lie_beside_a_record(store, redis):
    """Those of each attempt; they don't come with the record, and go with it; without one none are kept."""
    await store.keep_decisions("job_1", 1, {"cond": [1]})
    assert await redis.keys("*") == []
    await store.create(FIRST)
    for fence in (1, 2):
        await store.keep_decisions("job_1", fence, {"cond": [fence, None, "猫"]})
    assert await store.decisions("job_1", 2) == {"cond": [2, None, "猫"]}
    assert await store.decisions("job_1", 3) is None
    assert await store.get("job_1") == FIRST
    await store.remove("job_1")
    assert await redis.keys("*") == []


@pytest.mark.parametrize("write", ["create", "swap"])
async def test_a_write_whose_answer_was_lost_is_known_as_stored(
    write, store, server, loses_one_answer
):
    """Sent again over a new connection, it finds its own record and says so; what it tells is told once."""
    # So that the server knows the script, and the first answer is the write's own.
    await store.create(replace(FIRST, id="job_2"))
    record = FIRST
    if write == "swap":
        await store.create(FIRST)
        record = _next(FIRST, Place.RUNNING)
    async with loses_one_answer(str(server.socket), b"EVALSHA") as (redis, lost):
        assert await getattr(JobStore(redis, "app"), write)(record, [QUEUED])
    assert lost == [b":1\r\n"]
    assert await store.get("job_1") == record
    assert [event.kind for event in await store.events.read("job_1")] == ["queued"]


async def test_an_event_whose_answer_was_lost_is_told_once(store, server, loses_one_answer):
    """Sent again over a new connection, it is found."""
    step = Event("step", {"step": 1})
    await store.create(FIRST, [QUEUED])
    await store.events.tell("job_2", step)  # as above
    async with loses_one_answer(str(server.socket), b"EVALSHA") as (redis, lost):
        await JobStore(redis, "app").events.tell("job_1", step)
    assert len(lost) == 1
    assert [event.kind for event in await store.events.read("job_1")] == ["queued", "step"]
