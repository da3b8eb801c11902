from __future__ import annotations

import torch

from warpcache_ray.core.types import BranchState, Snapshot, Step
from warpcache_ray.engine.session import Session, SessionStore
from warpcache_ray.policy_spec import parse_policy

WHERE = ("transformer", "cond")
LIKE = torch.zeros(1, 4, 8)
BYTES = LIKE.nbytes


def state(tokens: int = 4) -> BranchState:
    return BranchState(Snapshot(Step(0), torch.zeros(1, tokens, 8)))


def session() -> Session:
    return Session(parse_policy("interval"))


def test_least_recently_used_session_goes_first() -> None:
    """Over the budget the session that was longest without a commit loses its states; others keep theirs."""
    store = SessionStore(2 * BYTES)
    old, fresh, new = session(), session(), session()
    for each in (old, fresh, old, new):
        store.commit(each, WHERE, state())
    assert (old.nbytes, fresh.nbytes, new.nbytes) == (BYTES, 0, BYTES)
    assert store.evictions == 1
    assert store.nbytes == 2 * BYTES


def test_branches_do_not_share() -> None:
    """What one branch keeps, another does not see."""
    store, one = SessionStore(), session()
    store.commit(one, WHERE, state())
    assert one.state(WHERE, LIKE).latest is not None
    assert one.state(("transformer", "uncond"), LIKE).latest is None
    assert one.state(("transformer_2", "cond"), LIKE).latest is None


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
