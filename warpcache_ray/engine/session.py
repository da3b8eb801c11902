"""Cache state: one session per request, and the store that bounds what all sessions hold."""

from __future__ import annotations

import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from torch import Tensor

from warpcache_ray.core.policy import Policy
from warpcache_ray.core.types import BranchState, Outcome, Site, Step, Where
from warpcache_ray.engine.stats import CacheStats
from warpcache_ray.policy_spec import summarize_policy

DEFAULT_BUDGET = 8 << 30


@dataclass(slots=True, eq=False)
class Session:
    """One request's policy, branch states and statistics. `outcomes` and `memos` are by transformer, `request` is the
    id by which a store can be told to forget it, `start` how many steps an earlier run had made."""

    policy: Policy
    request: str | None = None
    start: int = 0
    states: dict[Where, BranchState] = field(default_factory=dict)
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    memos: dict[str, Any] = field(default_factory=dict)
    stats: CacheStats = field(init=False)
    kept: int = 0
    """Bytes of its states."""
    used: float = 0.0
    """When its store last heard of it, by the store's clock."""
    run: int | None = None
    """The pipeline's run that its latest call belongs to, by the count of the installation."""
    first_call: float | None = None
    """When its first denoiser call began (time.perf_counter)."""

    def __post_init__(self) -> None:
        self.stats = CacheStats(summarize_policy(self.policy))

    def state(self, where: Where, like: Tensor) -> BranchState:
        """The branch's state, fresh if what it keeps has another shape, device or (but at site `output`, where outputs
        aren't added to inputs, and under autocast differ from them) dtype than `like`."""
        state = self.states.get(where, BranchState())
        if state.latest is None:
            return state
        kept = state.latest.residual
        fits = (kept.shape, kept.device) == (like.shape, like.device)
        typed = kept.dtype == like.dtype or self.policy.site is Site.OUTPUT
        return state if fits and typed else BranchState()

    def informed(self, where: Where, like: Tensor, step: Step) -> BranchState:
        """The branch's state with what the policy may know of the other branches."""
        peer = self.outcomes.get(where.transformer)
        if peer is not None and (peer.step.index != step.index or peer.step.branch == where.branch):
            peer = None
        memo = self.memos.get(where.transformer)
        return replace(self.state(where, like), peer=peer, memo=memo)

    def keep(self, where: Where, state: BranchState) -> None:
        """Replaces one branch's state."""
        before = self.states.get(where, BranchState())
        self.states[where] = replace(state, peer=None, memo=None)
        self.kept += state.nbytes - before.nbytes

    def clear(self) -> None:
        """Forgets all but the statistics."""
        self.kept = 0
        self.states.clear()
        self.outcomes.clear()
        self.memos.clear()

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        memos = [memo for memo in self.memos.values() if isinstance(memo, Tensor)]
        loose = [outcome.residual for outcome in self.outcomes.values()] + memos
        return self.kept + sum(tensor.nbytes for tensor in loose)


class Dropped(StrEnum):
    """Why a session lost its states before its end."""

    BUDGET = "budget"
    EXPIRED = "expired"
    INVALIDATED = "invalidated"


@dataclass(frozen=True, slots=True)
class StoreStats:
    """What a store holds, and how many sessions lost their states before their end."""

    sessions: int
    bytes: int
    evictions: int
    expirations: int
    invalidations: int


@dataclass(slots=True)
class SessionStore:
    """Bounds what all live sessions hold, in bytes and, with `ttl`, in seconds since a session's last commit.

    Over the budget the least recently used session loses its states first; a session that lost them recomputes and
    goes on. `on_evict` hears of each loss, after it. Threads may share a store, not a session.
    """

    budget: int = DEFAULT_BUDGET
    ttl: float | None = None
    on_evict: Callable[[Session, Dropped], None] | None = None
    clock: Callable[[], float] = time.monotonic
    sessions: OrderedDict[int, Session] = field(default_factory=OrderedDict)
    losses: Counter[Dropped] = field(default_factory=Counter)
    _lock: threading.RLock = field(default_factory=threading.RLock, repr=False)

    def commit(self, session: Session, where: Where, state: BranchState) -> None:
        """Replaces one branch's state, then drops what is too old and too much (the committing session last)."""
        with self._lock:
            session.keep(where, state)
            session.used = self.clock()
            self.sessions[id(session)] = session
            self.sessions.move_to_end(id(session))
            stats = session.stats
            stats.cache_bytes = session.nbytes
            stats.peak_cache_bytes = max(stats.peak_cache_bytes, stats.cache_bytes)
            self.expire()
            self._evict()

    def drop(self, session: Session) -> None:
        """Forgets a session's states."""
        with self._lock:
            session.clear()
            session.stats.cache_bytes = 0
            self.sessions.pop(id(session), None)

    def lose(self, session: Session, why: Dropped) -> None:
        """Takes a session's states from it before its end."""
        with self._lock:
            self.drop(session)
            self.losses[why] += 1
        if self.on_evict is not None:
            self.on_evict(session, why)

    def forget(self) -> None:
        """Drops the states of all sessions: from now on the model's weights are others."""
        with self._lock:
            for session in list(self.sessions.values()):
                self.lose(session, Dropped.INVALIDATED)

    def expire(self) -> None:
        """Drops the sessions that weren't used for `ttl` seconds; each commit does so too."""
        if self.ttl is None:
            return
        with self._lock:
            oldest = self.clock() - self.ttl
            # In the order of use, so those that are too old stand first.
            for session in list(self.sessions.values()):
                if session.used >= oldest:
                    return
                self.lose(session, Dropped.EXPIRED)

    def invalidate(self, request: str) -> int:
        """Drops the states of the request's sessions; how many there were."""
        with self._lock:
            found = [s for s in self.sessions.values() if s.request == request]
            for session in found:
                self.lose(session, Dropped.INVALIDATED)
            return len(found)

    @property
    def nbytes(self) -> int:
        """Bytes held by all sessions."""
        with self._lock:
            return sum(session.nbytes for session in self.sessions.values())

    @property
    def stats(self) -> StoreStats:
        """What it holds now and did so far."""
        with self._lock:
            return StoreStats(
                len(self.sessions),
                self.nbytes,
                self.losses[Dropped.BUDGET],
                self.losses[Dropped.EXPIRED],
                self.losses[Dropped.INVALIDATED],
            )

    def _evict(self) -> None:
        total = self.nbytes
        for session in list(self.sessions.values()):
            if total <= self.budget:
                return
            total -= session.nbytes
            session.stats.evictions += 1
            self.lose(session, Dropped.BUDGET)
