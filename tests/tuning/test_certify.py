"""Certificates over invented runs: which policies are measured, in which order, and what is said of which."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from warpcache_ray.core.policies.auto import Auto
from warpcache_ray.errors import InvalidRequest
from warpcache_ray.guarantee import Promise
from warpcache_ray.policy_document import Target
from warpcache_ray.tuning.certify import (
    GAINS_DB,
    certify,
    check_certifiable,
    prompts_digest,
    sequence,
)
from warpcache_ray.tuning.runs import Request, Score

FRESH = [Request(f"fresh {i}", 100 + i) for i in range(59)]
PROMISE = Promise()


class InventedRuns:
    """Requests miss 30 dB if they are among the first few, how many depends on the calls."""

    def __init__(self, misses: Callable[[int], int]) -> None:
        self.misses = misses
        self.asked: list[int] = []
        self.uncached: list[Request] = []

    @property
    def generations(self) -> float:
        return len(self.uncached) + sum(self.asked) / 50

    def reference(self, request: Request) -> None:
        self.uncached.append(request)

    def score(self, request: Request, policy: Auto) -> Score:
        assert policy.max_calls is not None
        self.asked.append(policy.max_calls)
        missed = request.seed - 100 < self.misses(policy.max_calls)
        return Score(29.9 if missed else 30.0, 0.98, policy.max_calls)


def _certified(invent: Any, misses: Callable[[int], int]) -> tuple[Any, ...]:
    runs: Any = InventedRuns(misses)
    profile = invent(12)
    policy, certificate = certify(runs, profile, FRESH, PROMISE, progress=False)
    return runs, [p.max_calls for p in sequence(profile)], policy, certificate


def test_a_sequence_goes_from_safe_to_fast(invent: Any) -> None:
    """By the closed form's dB, with the search's choice in it, and never beyond all steps or below the fewest."""
    profile = invent(12)
    calls = [p.max_calls for p in sequence(profile)]
    assert 12 in calls
    assert calls == sorted(calls, reverse=True)
    gains = [profile.predicted(c) - profile.predicted(12) for c in calls]
    assert all(g >= wanted for g, wanted in zip(gains, GAINS_DB, strict=True))
    assert all(
        profile.predicted(c - 1) - profile.predicted(12) < wanted
        for c, wanted in zip(calls, GAINS_DB, strict=True)
    )
    least = [p.max_calls for p in sequence(invent(5))]
    assert min(least) == 4
    assert max(p.max_calls or 0 for p in sequence(invent(49))) == 50


def test_without_a_miss_the_fastest_is_certified(invent: Any) -> None:
    """All policies on the same fresh requests, each request uncached once; faster ones than the search's choice too."""
    runs, order, policy, certificate = _certified(invent, lambda calls: 0)
    assert runs.asked == [calls for calls in order for _ in FRESH]
    assert runs.uncached == FRESH
    assert policy.max_calls == order[-1] < 12
    assert (certificate.certified, certificate.misses, certificate.allowed_misses) == (True, 0, 0)
    assert (certificate.requests, certificate.policies_tested) == (59, len(order))
    assert certificate.share_kept == pytest.approx(0.95, abs=1e-3)


def test_a_safer_one_stands_in(invent: Any) -> None:
    """The choice misses once too often, and runs no further: the one before it is handed out, with its own
    certificate."""
    runs, order, policy, certificate = _certified(invent, lambda calls: int(calls == 12))
    before = order.index(12) - 1
    assert policy.max_calls == order[before]
    assert runs.asked == [calls for calls in order[: before + 1] for _ in FRESH] + [12]
    found = certificate.certified, certificate.misses, certificate.policies_tested
    assert found == (True, 0, before + 2)


def test_nothing_after_a_failure_is_measured(invent: Any) -> None:
    """The safest fails: no certificate, whatever the faster ones would have done."""
    runs, order, policy, certificate = _certified(invent, lambda calls: 2 if calls > 12 else 0)
    assert runs.asked == [order[0]] * len(FRESH)
    assert policy.max_calls == order[0]
    assert (certificate.certified, certificate.misses, certificate.policies_tested) == (False, 2, 1)
    assert certificate.share_kept < 0.95


@pytest.mark.parametrize(
    ("target", "requests", "told"),
    [
        (Target("psnr", 35.0), 58, "certify: 58 is not allowed; 95% .* 95% .* needs 59 or more"),
        (Target("calls", 12), 59, "certify: needs a quality to keep"),
    ],
)
def test_what_proves_nothing_is_refused(target: Target, requests: int, told: str) -> None:
    """Before anything is run."""
    with pytest.raises(InvalidRequest, match=told) as caught:
        check_certifiable(target, requests, PROMISE)
    assert caught.value.param == "certify"


def test_prompts_and_seeds_make_a_digest() -> None:
    """Another seed is another request."""
    assert prompts_digest(FRESH) == prompts_digest(list(FRESH))
    assert prompts_digest(FRESH) != prompts_digest([*FRESH[1:], Request("fresh 0", 7)])
