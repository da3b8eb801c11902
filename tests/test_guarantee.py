"""Certificates and audits against exact values, and against simulated requests whose miss rate is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from warpcache_ray.errors import InvalidRequest
from warpcache_ray.guarantee import (
    Audit,
    Promise,
    Verdict,
    allowed_misses,
    fixed_sequence,
    log_evidence,
    miss_rate_within,
    needed_requests,
    p_value,
    share_kept,
)

PROMISE = Promise(0.95, 0.05)


@pytest.mark.parametrize(("misses", "requests"), [(0, 59), (1, 93), (2, 124), (3, 153), (4, 181)])
def test_requests_for_95_of_95(misses: int, requests: int) -> None:
    """The well-known sample sizes: one request fewer doesn't do."""
    assert needed_requests(misses, PROMISE) == requests
    assert allowed_misses(requests, PROMISE) == misses
    assert allowed_misses(requests - 1, PROMISE) == (misses - 1 if misses else None)


@pytest.mark.parametrize(
    ("promise", "requests"),
    [(Promise(0.9, 0.1), 22), (Promise(0.99, 0.05), 299), (Promise(0.95, 0.01), 90)],
)
def test_requests_without_a_miss(promise: Promise, requests: int) -> None:
    """share ** n <= delta, in closed form."""
    assert needed_requests(0, promise) == requests
    assert p_value(requests, 0, promise.share) == pytest.approx(promise.share**requests)


def test_the_bound_agrees_with_the_test() -> None:
    """Clopper and Pearson's bound reaches the share just where the p-value reaches delta; exact at the ends."""
    for requests in (1, 10, 59, 124, 256):
        for misses in range(min(requests, 20)):
            proven = share_kept(requests, misses, 0.05) >= 0.95
            assert proven == (p_value(requests, misses, 0.95) <= 0.05)
            kept = share_kept(requests, misses, 0.05)
            assert p_value(requests, misses, kept) == pytest.approx(0.05)
    assert share_kept(59, 0, 0.05) == pytest.approx(0.05 ** (1 / 59))
    assert share_kept(5, 5, 0.05) == 0.0


def test_more_misses_prove_less() -> None:
    """In misses it falls, in requests it rises, in confidence it falls."""
    kept = np.array([[share_kept(n, k, 0.05) for k in range(10)] for n in range(20, 200, 20)])
    assert (np.diff(kept, axis=1) < 0).all()
    assert (np.diff(kept, axis=0) > 0).all()
    assert share_kept(100, 3, 0.01) < share_kept(100, 3, 0.1)


def test_certificates_err_as_seldom_as_they_say() -> None:
    """Of policies just short of the promise at most delta are certified, and nearly so many: the bound is no excuse."""
    random = np.random.default_rng(0)
    misses = random.binomial(124, 1 - 0.9499, size=200_000)
    allowed = allowed_misses(124, PROMISE)
    assert allowed == 2
    assert 0.04 < (misses <= allowed).mean() < 0.05


def test_a_sequence_stops_at_its_first_failure() -> None:
    """And asks for no p-value beyond it: those needn't be measured."""
    asked = []

    def measured() -> object:
        for p in (0.001, 0.03, 0.2, 0.0):
            asked.append(p)
            yield p

    assert fixed_sequence(measured(), 0.05) == 2
    assert asked == [0.001, 0.03, 0.2]
    assert fixed_sequence([], 0.05) == 0


def test_a_sequence_errs_as_seldom_as_one_test() -> None:
    """Safe policies before, and four bad ones on the same requests: any bad one is certified with a chance of delta."""
    random = np.random.default_rng(1)
    rates = np.array([0.001, 0.01, 0.0501, 0.0502, 0.0503, 0.08])
    # The same requests for all: what misses under a safe policy misses under a faster one too.
    difficulty = random.random((20_000, 124, 1))
    misses = (difficulty < rates).sum(1)
    table = np.array([p_value(124, k, 0.95) for k in range(125)])
    certified = np.array([fixed_sequence(row, 0.05) for row in table[misses]])
    assert (certified > 2).mean() < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 20_000)
    assert (certified >= 1).mean() > 0.99


LENGTH = 1_500


@pytest.fixture(scope="module")
def borders() -> dict[bool, np.ndarray]:
    """Misses at which the evidence reaches 20 after 1, 2, ... requests: the fewest that break, the most that keep."""
    found = {}
    for above in (True, False):
        misses, rows = -1, []
        for n in range(1, LENGTH + 1):
            # Evidence for a high rate begins behind the border, evidence for a low one ends there.
            while misses < n and above != _enough(n, misses + 1, above):
                misses += 1
            rows.append(misses + above)
        found[above] = np.array(rows)
    return found


def _enough(requests: int, misses: int, above: bool) -> bool:
    return log_evidence(requests, misses, 0.05, above) >= math.log(20)


def _ever(borders: dict[bool, np.ndarray], rate: float, above: bool) -> float:
    """Share of simulated audits whose evidence ever reaches 20, looking after every request."""
    misses = (np.random.default_rng(2).random((4_000, LENGTH)) < rate).cumsum(1)
    reached = misses >= borders[above] if above else misses <= borders[above]
    return float(reached.any(1).mean())


def test_looking_all_the_time_keeps_the_level(borders: dict[bool, np.ndarray]) -> None:
    """At the limit itself either verdict comes in at most one of twenty audits; away from it, nearly always."""
    assert 0.005 < _ever(borders, 0.05, above=True) <= 0.05
    assert 0.005 < _ever(borders, 0.05, above=False) <= 0.05
    assert _ever(borders, 0.12, above=True) > 0.99
    assert _ever(borders, 0.01, above=False) > 0.99
    assert _ever(borders, 0.03, above=True) < 0.01


def test_evidence_starts_at_one_and_is_fair() -> None:
    """A request at the limit changes it by nothing on average: a martingale."""
    for above in (True, False):
        assert log_evidence(0, 0, 0.05, above) == pytest.approx(0, abs=1e-9)
        for n, k in ((0, 0), (10, 1), (200, 4), (200, 30)):
            now = math.exp(log_evidence(n, k, 0.05, above))
            hit, kept = (math.exp(log_evidence(n + 1, k + m, 0.05, above)) for m in (1, 0))
            assert 0.05 * hit + 0.95 * kept == pytest.approx(now, rel=1e-6)


def test_evidence_follows_the_misses() -> None:
    """Each miss speaks for a broken promise and against a kept one."""
    for above, sign in ((True, 1), (False, -1)):
        told = [log_evidence(100, k, 0.05, above) for k in range(100)]
        assert (sign * np.diff(told) > 0).all()


def test_the_confidence_sequence_holds_at_all_times() -> None:
    """The true rate leaves it, at any time, in at most delta of the runs; it is wider than an interval for one look."""
    misses = (np.random.default_rng(3).random((1_000, 400)) < 0.07).cumsum(1)
    bounds = {
        (n, k): miss_rate_within(n, k, 0.05)
        for n in range(1, 401)
        for k in np.unique(misses[:, n - 1]).tolist()
    }
    left = [
        any(not b[0] <= 0.07 <= b[1] for b in (bounds[n, k] for n, k in enumerate(run, 1)))
        for run in misses.tolist()
    ]
    assert np.mean(left) <= 0.05
    assert 1 - miss_rate_within(124, 2, 0.05)[1] < share_kept(124, 2, 0.05)
    assert miss_rate_within(0, 0, 0.05) == (0.0, 1.0)
    assert miss_rate_within(100, 0, 0.05)[0] == 0.0
    assert miss_rate_within(100, 100, 0.05)[1] == 1.0


def _audited(kept: list[bool]) -> Audit:
    audit = Audit(PROMISE)
    for each in kept:
        audit = audit.after(each)
    return audit


def test_an_audit_comes_to_a_verdict_that_stands() -> None:
    """A row of misses breaks the promise; a long row without keeps it; what comes later changes the counts alone."""
    broken = _audited([False] * 4)
    assert (broken.verdict, broken.misses) == (Verdict.BROKEN, 4)
    assert _audited([False] * 4 + [True] * 500).verdict is Verdict.BROKEN
    kept = [_audited([True] * n).verdict for n in range(0, 200, 10)]
    first = kept.index(Verdict.KEPT)
    assert set(kept[:first]) == {Verdict.OPEN}
    # No earlier than the certificate that may look but once.
    assert 59 < 10 * first < 150


@pytest.mark.parametrize(("share", "delta"), [(1.0, 0.05), (0.0, 0.05), (0.95, 0.0), (0.95, 1.5)])
def test_no_promise_is_certain(share: float, delta: float) -> None:
    """The message names the field."""
    with pytest.raises(InvalidRequest, match="must be between 0 and 1"):
        Promise(share, delta)
