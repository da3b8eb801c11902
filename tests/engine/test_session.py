from __future__ import annotations

import torch

from warpcache_ray.core.types import BranchState, Snapshot, Step, Trail, Where
from warpcache_ray.engine.session import Dropped, Session, SessionStore, StoreStats
from warpcache_ray.policy_spec import parse_policy

WHERE = Where("transformer", "cond")
LIKE = torch.zeros(1, 4, 8)
BYTES = LIKE.nbytes


def state(tokens: int = 4) -> BranchState:
    return BranchState(Snapshot(Step(0), torch.zeros(1, tokens, 8)))


def session(request: str | None = None) -> Session:
    return Session(parse_policy("interval"), request)


def test_least_recently_used_session_goes_first() -> None:
    """Over the budget the session that was longest without a commit loses its states; others keep theirs."""
    store = SessionStore(2 * BYTES)
    old, fresh, new = session(), session(), session()
    for each in (old, fresh, old, new):
        store.commit(each, WHERE, state())
    assert (old.nbytes, fresh.nbytes, new.nbytes) == (BYTES, 0, BYTES)
    assert store.stats.evictions == 1
    assert store.nbytes == 2 * BYTES


def test_branches_do_not_share() -> None:
    """What one branch keeps, another does not see."""
    store, one = SessionStore(), session()
    store.commit(one, WHERE, state())
    assert one.state(WHERE, LIKE).latest is not None
    assert one.state(Where("transformer", "uncond"), LIKE).latest is None
    assert one.state(Where("transformer_2", "cond"), LIKE).latest is None


def test_state_of_another_shape_or_dtype_is_void() -> None:
    """Features of another shape or dtype find no state to reuse."""
    store, one = SessionStore(), session()
    store.commit(one, WHERE, state())
    assert one.state(WHERE, torch.zeros(1, 6, 8)).latest is None
    assert one.state(WHERE, LIKE.bfloat16()).latest is None


def test_bytes_count_tensors_once() -> None:
    """A tensor in two fields is one; the account remembers the peak after the session is dropped."""
    shared = torch.zeros(1, 4, 8)
    assert Snapshot(Step(0), shared, input=shared).nbytes == BYTES
    store, one = SessionStore(), session()
    store.commit(one, WHERE, BranchState(Snapshot(Step(0), shared, input=LIKE)))
    store.drop(one)
    assert store.nbytes == 0
    assert one.stats.peak_cache_bytes == 2 * BYTES


class Clock:
    """Seconds that pass when told to."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_what_is_not_used_expires() -> None:
    """A session without a commit for longer than `ttl` loses its states, at the next commit or when asked."""
    clock = Clock()
    store = SessionStore(ttl=10.0, clock=clock)
    old, fresh = session(), session()
    store.commit(old, WHERE, state())
    clock.now += 8
    store.commit(fresh, WHERE, state())
    assert old.nbytes == BYTES
    clock.now += 8
    store.commit(fresh, WHERE, state())
    assert (old.nbytes, fresh.nbytes, store.stats.expirations) == (0, BYTES, 1)
    clock.now += 11
    store.expire()
    assert store.stats == StoreStats(0, 0, evictions=0, expirations=2, invalidations=0)


def test_a_request_is_forgotten() -> None:
    """All sessions of one request lose their states, and no others."""
    store = SessionStore()
    sessions = [session("a"), session("b"), session("a"), session()]
    for each in sessions:
        store.commit(each, WHERE, state())
    assert store.invalidate("a") == 2
    assert store.invalidate("a") == 0
    assert [each.nbytes for each in sessions] == [0, BYTES, 0, BYTES]
    assert store.stats == StoreStats(2, 2 * BYTES, evictions=0, expirations=0, invalidations=2)


def test_losses_are_told() -> None:
    """Each loss before a session's end, and why; an end that was asked for isn't one."""
    clock, told = Clock(), []
    store = SessionStore(BYTES, 10.0, lambda lost, why: told.append((lost.request, why)), clock)
    a, b, c = session("a"), session("b"), session("c")
    store.commit(a, WHERE, state())
    store.commit(b, WHERE, state())
    clock.now += 11
    store.commit(c, WHERE, state())
    store.invalidate("c")
    store.commit(a, WHERE, state())
    store.drop(a)
    expected = [("a", Dropped.BUDGET), ("b", Dropped.EXPIRED), ("c", Dropped.INVALIDATED)]
    assert told == expected
    assert a.stats.evictions == 1


def test_a_lost_session_goes_on() -> None:
    """It finds no state, and is counted again from its next commit on."""
    store, one = SessionStore(), session("a")
    store.commit(one, WHERE, state())
    store.invalidate("a")
    assert one.state(WHERE, LIKE).latest is None
    store.commit(one, WHERE, state())
    assert store.nbytes == BYTES


def test_all_that_is_held_counts() -> None:
    """Three snapshots, the trail's reference, and a tensor that stands in two of them once."""
    tensors = [torch.zeros(1, 4, 8) for _ in range(4)]
    latest, previous, older = (Snapshot(Step(i), t) for i, t in enumerate(tensors[:3]))
    full = BranchState(latest, previous, older=older, trail=Trail((0.1,), tensors[3]))
    shared = BranchState(latest, trail=Trail((), tensors[0]))
    assert (full.nbytes, shared.nbytes) == (4 * BYTES, BYTES)
    store, one = SessionStore(), session()
    for each in (full, shared, full, shared):
        store.commit(one, WHERE, each)
        assert store.nbytes == one.nbytes == each.nbytes


def test_notes_count_where_they_are_tensors() -> None:
    """A policy's memo is held by the session too."""
    store, one = SessionStore(), session()
    one.memos["transformer"] = LIKE
    store.commit(one, WHERE, state())
    assert one.nbytes == 2 * BYTES
