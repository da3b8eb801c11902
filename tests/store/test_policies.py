"""What the store of policies keeps to, on each server."""

import asyncio
import json

import pytest
from redis.asyncio.client import PubSub

from warpcache_ray.errors import InvalidRequest, LostRace, NotFound, PayloadTooLarge, Unavailable
from warpcache_ray.store import policies as module
from warpcache_ray.store.policies import Policies, PolicyStore, Version

KEY = "sha256:0123456789abcdef"
A, B, C = ({"policy": {"name": name}, "provenance": {"猫": [1.5, None]}} for name in "abc")
ME = ("me", "because")
SOON = 5.0
CHANGE_S = 1.0
"""How soon all replicas must hear of a change."""


async def _in_force(policies: PolicyStore) -> tuple[int | None, int | None, int]:
    found = await policies.read(KEY)
    active, canary = (v and v.number for v in (found.active, found.canary))
    return active, canary, found.share


async def _publish(policies: PolicyStore, *documents: dict) -> None:
    for document in documents:
        await policies.publish(await policies.read(KEY), document, *ME)


async def test_nothing_is_in_force_of_a_key_that_nobody_knows(policies, redis):
    """Reading finds no version and leaves nothing behind."""
    assert await policies.read(KEY) == Policies(KEY, 0)
    assert await policies.history(KEY) == await policies.keys() == await redis.keys() == []


async def test_versions_come_into_force_and_never_change(policies):
    """Each publication is a new number, in force at once; all before it can still be had as they were."""
    for number, document in enumerate((A, B, A), start=1):
        seen = await policies.read(KEY)
        assert await policies.publish(seen, document, *ME) == number
        found = await policies.read(KEY)
        assert found == Policies(KEY, number, Version(number, document))
    assert [(await policies.version(KEY, n)).document for n in (1, 2, 3)] == [A, B, A]
    for number in (0, 4, -1):
        with pytest.raises(NotFound, match=f"no version {number}"):
            await policies.version(KEY, number)


async def test_what_was_in_force_is_read_in_one_round_trip(policies, redis):
    """Active version and canary with their documents, by one command."""
    await _publish(policies, A)
    await policies.publish(await policies.read(KEY), B, *ME, share=10)
    before = (await redis.info("stats"))["total_commands_processed"]
    found = await policies.read(KEY)
    after = (await redis.info("stats"))["total_commands_processed"]
    assert found == Policies(KEY, 2, Version(1, A), Version(2, B), 10)
    # The commands that the script gives are counted too, and INFO itself.
    assert after - before == 1 + 3 + 1


async def test_a_canary_is_promoted_or_withdrawn(policies):
    """It leaves the active version in force until it is promoted, once; a change of that ends it."""
    await policies.publish(await policies.read(KEY), A, *ME, share=10)
    assert await _in_force(policies) == (None, 1, 10)
    await policies.promote(await policies.read(KEY), *ME)
    assert await _in_force(policies) == (1, None, 0)
    await policies.publish(await policies.read(KEY), B, *ME, share=20)
    await policies.activate(await policies.read(KEY), 2, *ME, share=50)
    assert await _in_force(policies) == (1, 2, 50)
    await policies.withdraw(await policies.read(KEY), *ME)
    assert await _in_force(policies) == (1, None, 0)
    for end in (policies.promote, policies.withdraw):
        with pytest.raises(NotFound, match="no canary"):
            await end(await policies.read(KEY), *ME)
    await policies.activate(await policies.read(KEY), 2, *ME, share=50)
    await policies.publish(await policies.read(KEY), C, *ME)
    assert await _in_force(policies) == (3, None, 0)


async def test_rollback_goes_back_to_what_was_in_force(policies):
    """One version after the other, never to one that was left by a rollback, in the end to none; the canary ends."""
    await _publish(policies, A, B)
    assert await policies.rollback(await policies.read(KEY), *ME) == 1
    await _publish(policies, C)
    await policies.publish(await policies.read(KEY), A, *ME, share=10)
    assert await policies.rollback(await policies.read(KEY), *ME) == 1
    assert await _in_force(policies) == (1, None, 0)
    assert await policies.rollback(await policies.read(KEY), *ME) is None
    assert await _in_force(policies) == (None, None, 0)
    with pytest.raises(NotFound, match="no version to go back to"):
        await policies.rollback(await policies.read(KEY), *ME)
    await policies.activate(await policies.read(KEY), 2, *ME)
    assert await _in_force(policies) == (2, None, 0)


async def test_a_version_that_isnt_there_is_not_activated(policies):
    """Nor are the names of what stands beside the versions; nothing changes."""
    await _publish(policies, A)
    seen = await policies.read(KEY)
    for number in (0, 2, -1):
        with pytest.raises(NotFound, match=f"no version {number}"):
            await policies.activate(seen, number, *ME)
    assert await policies.read(KEY) == seen


async def test_one_of_two_changes_wins(policies):
    """Of changes from the same reading just one is made, whatever they are; the others say what they missed."""
    await _publish(policies, A, B)
    for _ in range(10):
        seen = await policies.read(KEY)
        rivals = (
            policies.publish(seen, C, *ME),
            policies.publish(seen, C, *ME),
            policies.activate(seen, 1, *ME, share=10),
        )
        made = await asyncio.gather(*rivals, return_exceptions=True)
        lost = [error for error in made if isinstance(error, LostRace)]
        assert len(lost) == 2
        assert f"revision {seen.revision + 1}, not {seen.revision}" in lost[0].message
        assert (await policies.read(KEY)).revision == seen.revision + 1
    seen = await policies.read(KEY)
    await _publish(policies, A)
    for late in (policies.rollback(seen, *ME), policies.activate(seen, 1, *ME)):
        with pytest.raises(LostRace):
            await late


async def test_history_tells_who_and_why(policies, monkeypatch):
    """The newest first, and only so many; versions that it tells of no more are still there."""
    await policies.publish(await policies.read(KEY), A, "profiler", "first runs", share=10)
    await policies.promote(await policies.read(KEY), "audit", 'agrees: "1 2"')
    await policies.rollback(await policies.read(KEY), "人", "")
    told = await policies.history(KEY)
    assert [(c.revision, c.version, c.what, c.share, c.who, c.why) for c in told] == [
        (3, None, "rollback", 100, "人", ""),
        (2, 1, "activate", 100, "audit", 'agrees: "1 2"'),
        (1, 1, "publish", 10, "profiler", "first runs"),
    ]
    assert told[0].at >= told[1].at >= told[2].at > 0
    for _ in range(module.KEPT):
        await policies.activate(await policies.read(KEY), 1, *ME)
    assert len(await policies.history(KEY)) == module.KEPT
    assert (await policies.history(KEY))[0].revision == 3 + module.KEPT


async def test_a_document_has_a_limit(policies, monkeypatch):
    """One byte more than it is refused before anything is stored."""
    monkeypatch.setattr(module, "LARGEST_BYTES", len(json.dumps(A)))
    await _publish(policies, A)
    with pytest.raises(PayloadTooLarge, match="bytes of JSON; at most"):
        await _publish(policies, A | {"b": 1})
    assert await _in_force(policies) == (1, None, 0)


@pytest.mark.parametrize("share", [0, -1, 101])
async def test_a_share_is_a_percentage(share, policies):
    """No other is stored."""
    with pytest.raises(
        InvalidRequest, match=f"share = {share} is not allowed; it must be 1 to 100"
    ):
        await policies.publish(await policies.read(KEY), A, *ME, share=share)
    assert (await policies.read(KEY)).revision == 0


async def test_keys_and_applications_share_nothing(policies, redis):
    """What is in force for one is not for another; all of an application is in one slot of a cluster."""
    other = PolicyStore(redis, "other")
    await _publish(policies, A)
    await policies.publish(await policies.read("key"), B, *ME)
    await other.publish(await other.read(KEY), C, *ME)
    assert await policies.keys() == ["key", KEY]
    assert [(await s.read(KEY)).active for s in (policies, other)] == [Version(1, A), Version(1, C)]
    tags = {key.partition("}")[0] for key in await redis.keys()}
    assert tags == {"{warpcache:app", "{warpcache:other"}


async def test_changes_are_heard_of_at_once(policies, redis, server):
    """Everyone who listens hears each change of this application within a second, and when it may have missed some."""
    listeners = [policies.changes() for _ in range(2)]
    for heard in listeners:
        assert await asyncio.wait_for(anext(heard), SOON) is None
    other = PolicyStore(redis, "other")
    await other.publish(await other.read("elsewhere"), A, *ME)
    await _publish(policies, A)
    await policies.rollback(await policies.read(KEY), *ME)
    for heard in listeners:
        assert [await asyncio.wait_for(anext(heard), CHANGE_S) for _ in range(2)] == [KEY, KEY]
    server.stop()
    server.start()
    for heard in listeners:
        assert await asyncio.wait_for(anext(heard), SOON) is None
        await heard.aclose()


async def test_policies_outlive_the_server(policies, server):
    """What was acknowledged is there after a restart."""
    await _publish(policies, A)
    await policies.publish(await policies.read(KEY), B, *ME, share=10)
    before = await policies.read(KEY), await policies.history(KEY)
    server.stop()
    with pytest.raises(Unavailable):
        await policies.read(KEY)
    server.start()
    assert (await policies.read(KEY), await policies.history(KEY)) == before


async def test_a_full_server_changes_nothing(policies, redis):
    """Every change says so; reading goes on."""
    await _publish(policies, A)
    await policies.publish(await policies.read(KEY), B, *ME, share=10)
    seen, told = await policies.read(KEY), await policies.history(KEY)
    await redis.config_set("maxmemory", 1)
    for change in (
        policies.publish(seen, C, *ME),
        policies.promote(seen, *ME),
        policies.withdraw(seen, *ME),
        policies.rollback(seen, *ME),
    ):
        with pytest.raises(Unavailable, match="memory is full"):
            await change
    assert (await policies.read(KEY), await policies.history(KEY)) == (seen, told)


async def test_a_change_whose_answer_was_lost_is_made_once(policies, server, loses_one_answer):
    """Sent again over a new connection, it finds what it has done."""
    await _publish(policies, A)
    async with loses_one_answer(str(server.socket), b"EVALSHA", b"publish") as (redis, lost):
        over = PolicyStore(redis, "app")
        assert await over.publish(await over.read(KEY), B, *ME) == 2
    assert len(lost) == 1
    assert [change.version for change in await policies.history(KEY)] == [2, 1]
    assert await policies.rollback(await policies.read(KEY), *ME) == 1


async def test_whoever_is_cancelled_listens_no_more(policies, monkeypatch):
    """Also where the client loses the cancellation, as it does when that comes together with an answer."""
    heard = PubSub.get_message

    async def loses_it(self, **options):
        try:
            return await heard(self, **options)
        except asyncio.CancelledError:
            return None

    monkeypatch.setattr(PubSub, "get_message", loses_it)

    async def listen():
        async for _ in policies.changes():
            listening.set()

    listening = asyncio.Event()
    listener = asyncio.create_task(listen())
    await asyncio.wait_for(listening.wait(), SOON)
    listener.cancel()
    await asyncio.wait([listener], timeout=SOON)
    assert listener.done()


async def test_what_a_rollback_would_bring_back_is_told(policies):
    """The version before, which a rollback then brings; None where nothing was, or nothing has been."""
    assert await policies.previous(KEY) is None
    for expected, document in ((None, A), (1, B), (2, C)):
        await _publish(policies, document)
        assert await policies.previous(KEY) == expected
    assert await policies.rollback(await policies.read(KEY), *ME) == 2
    assert await policies.previous(KEY) == 1
