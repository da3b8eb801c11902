"""What commands, routes and profilers ask of the published policies, on each server."""

import pytest
from documents import KEY, SLOT, document

from warpcache_ray.errors import (
    InvalidConfig,
    InvalidPolicy,
    InvalidRequest,
    LostRace,
    NotFound,
    Unavailable,
)
from warpcache_ray.policy_slots import slot_id
from warpcache_ray.store.policies import PolicyStore
from warpcache_ray.store.published import Published, published

ME = ("me", "because")


@pytest.fixture
def desk(policies):
    """Over the store of an application."""
    return Published(policies)


async def put(desk, calls, quality="default", **more):
    return await desk.publish(quality, document(calls).to_dict(), *ME, **more)


async def test_a_life_of_a_slot(desk):
    """Published, a canary beside it, promoted, rolled back, set again: each answer is how things stand then."""
    assert await desk.slots() == []
    first = await put(desk, 4)
    assert first == {
        "slot": SLOT,
        "quality": "default",
        "revision": 1,
        "active": 1,
        "canary": None,
        "share": 0,
        "key": document(4).to_dict()["key"],
        "target": {"metric": "ssim", "bound": 0.99},
        "certified": False,
        "expected": {"calls": 4},
    }
    await put(desk, 3, share=20)
    shown = await desk.show(SLOT)
    assert (shown["active"], shown["canary"], shown["share"]) == (1, 2, 20)
    assert shown["documents"] == {"active": document(4).to_dict(), "canary": document(3).to_dict()}
    assert (await desk.withdraw(SLOT, *ME))["canary"] is None
    assert (await desk.activate(SLOT, 2, *ME, share=50))["canary"] == 2
    assert (await desk.promote(SLOT, *ME))["active"] == 2
    assert (await desk.rollback(SLOT, *ME))["active"] == 1
    assert (await desk.activate(SLOT, 2, *ME))["active"] == 2
    assert await desk.document(SLOT) == await desk.document(SLOT, 2) == document(3).to_dict()
    told = [
        (change["what"], change["version"], change["who"]) for change in await desk.history(SLOT)
    ]
    assert told[0] == ("activate", 2, "me")
    assert [what for what, _, _ in reversed(told)] == (
        ["publish", "publish", "withdraw", "activate", "activate", "rollback", "activate"]
    )
    assert [line["slot"] for line in await desk.slots()] == [SLOT]


async def test_slots_are_found_by_how_they_begin(desk):
    """One, all of it or its beginning; not none, not several."""
    high = slot_id("high", KEY)
    await put(desk, 4)
    await put(desk, 5, quality="high")
    assert [await desk.find(name) for name in ("d", SLOT, "high")] == [SLOT, SLOT, high]
    with pytest.raises(InvalidRequest, match=f"'' is not enough; there are {SLOT}, {high}"):
        await desk.find("")
    for ask in (desk.find, desk.show, desk.history, desk.document):
        with pytest.raises(NotFound, match="nothing is published for slot 'fast-0'"):
            await ask("fast-0")


async def test_what_has_changed_since_is_not_changed(desk):
    """Whoever tells which revision it saw changes that one or nothing."""
    await put(desk, 4, revision=0)
    await put(desk, 5, share=10, revision=1)
    changes = [
        put(desk, 6, revision=1),
        desk.activate(SLOT, 1, *ME, revision=1),
        desk.promote(SLOT, *ME, revision=1),
        desk.withdraw(SLOT, *ME, revision=1),
        desk.rollback(SLOT, *ME, revision=1),
    ]
    for change in changes:
        with pytest.raises(LostRace, match="is at revision 2, not 1 any more"):
            await change
    assert (await desk.show(SLOT))["revision"] == 2
    assert (await desk.promote(SLOT, *ME, revision=2))["active"] == 2


async def test_nothing_but_documents_of_served_models_is_published(desk):
    """Where it is known which are served; and nothing is there after a refusal."""
    changed = document(4).to_dict()
    changed["policy"]["max_calls"] = 1
    await desk.store.serve(["Wan-1", "Wan-2"], 10)
    refused = [
        (changed, "was changed after"),
        ({"a": 1}, "format"),
        (document(4).to_dict(), "Wan-1, Wan-2"),
    ]
    for content, told in refused:
        with pytest.raises(InvalidPolicy, match=told):
            await desk.publish("default", content, *ME)
    with pytest.raises(InvalidRequest, match="quality: 'exact' is not allowed"):
        await put(desk, 4, quality="exact")
    assert await desk.slots() == []
    await desk.store.serve([KEY.model], 10)
    await put(desk, 4)


async def test_the_only_application_needs_no_name(server, redis):
    """None or two of them have to be told apart; what each has is its own."""
    with pytest.raises(InvalidConfig, match="not just one application: none so far"):
        async with published(server.url):
            pass
    await put(Published(PolicyStore(redis, "one")), 4)
    async with published(server.url) as desk:
        assert len(await desk.slots()) == 1
    async with published(server.url, "two") as desk:
        assert await desk.slots() == []
        await put(desk, 4)
    with pytest.raises(InvalidConfig, match="not just one application: one, two"):
        async with published(server.url):
            pass
    server.stop()
    with pytest.raises(Unavailable):
        async with published(server.url, "one"):
            pass
