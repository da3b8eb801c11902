"""Cache state: one session per request, and the store that bounds what all sessions hold."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from warpcache_ray.core.policy import Policy
from warpcache_ray.core.types import BranchState, Outcome, Step, Where
from warpcache_ray.engine.stats import CacheStats
from warpcache_ray.policy_spec import describe_policy

DEFAULT_BUDGET = 8 << 30


@dataclass(slots=True, eq=False)
class Session:
    """One request's policy, branch states and statistics. `outcomes` and `memos` are by transformer."""

    policy: Policy
    states: dict[Where, BranchState] = field(default_factory=dict)
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    memos: dict[str, Any] = field(default_factory=dict)
    stats: CacheStats = field(init=False)
    first_call: float | None = None
    """When its first denoiser call began (time.perf_counter)."""

    def __post_init__(self) -> None:
        self.stats = CacheStats(describe_policy(self.policy))

    def state(self, where: Where, like: Tensor) -> BranchState:
        """The branch's state, fresh if what it keeps has another shape, dtype or device than `like`."""
        state = self.states.get(where, BranchState())
        if state.latest is not None and not _alike(state.latest.residual, like):
            return BranchState()
        return state

    def informed(self, where: Where, like: Tensor, step: Step) -> BranchState:
        """The branch's state with what the policy may know of the other branches."""
        peer = self.outcomes.get(where.transformer)
        if peer is not None and (peer.step.index != step.index or peer.step.branch == where.branch):
            peer = None
        memo = self.memos.get(where.transformer)
        return replace(self.state(where, like), peer=peer, memo=memo)

    def clear(self) -> None:
        """Forgets all but the statistics."""
        self.states.clear()
        self.outcomes.clear()
        self.memos.clear()

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        kept = sum(state.nbytes for state in self.states.values())
        return kept + sum(outcome.residual.nbytes for outcome in self.outcomes.values())


@dataclass(slots=True)
class SessionStore:
    """Bounds the bytes of all live sessions; the least recently used one loses its states first."""

    budget: int = DEFAULT_BUDGET
    sessions: OrderedDict[int, Session] = field(default_factory=OrderedDict)
    evictions: int = 0

    def commit(self, session: Session, where: Where, state: BranchState) -> None:
        """Replaces one branch's state, then evicts until the budget holds (the committing session last)."""
        session.states[where] = replace(state, peer=None, memo=None)
        self.sessions[id(session)] = session
        self.sessions.move_to_end(id(session))
        total = self.nbytes
        stats = session.stats
        stats.cache_bytes = session.nbytes
        stats.peak_cache_bytes = max(stats.peak_cache_bytes, stats.cache_bytes)
        for other in list(self.sessions.values()):
            if total <= self.budget:
                return
            total -= other.nbytes
            self.evictions += 1
            other.stats.evictions += 1
            self.drop(other)

    def drop(self, session: Session) -> None:
        """Forgets a session's states."""
        session.clear()
        session.stats.cache_bytes = 0
        self.sessions.pop(id(session), None)

    @property
    def nbytes(self) -> int:
        """Bytes held by all sessions."""
        return sum(session.nbytes for session in self.sessions.values())


def _alike(kept: Tensor, given: Tensor) -> bool:
    return (kept.shape, kept.dtype, kept.device) == (given.shape, given.dtype, given.device)
