"""What a few measured requests say about all others: finite-sample certificates, and audits that may look at any time.

A request *misses* if it falls short of the asked quality. A promise is that at least `share` of the requests don't; the
chance that it is held to be proven though it isn't true is at most `delta`. It is about requests drawn like those
measured, with a policy that was fixed before them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import takewhile

from scipy.optimize import brentq
from scipy.special import betaln, xlog1py, xlogy
from scipy.stats import beta, binom

from warpcache_ray.errors import InvalidRequest

NEAR_ZERO = 1e-12


@dataclass(frozen=True, slots=True)
class Promise:
    """At least `share` of the requests keep the quality, at confidence 1 - `delta`."""

    share: float = 0.95
    delta: float = 0.05

    def __post_init__(self) -> None:
        for name in ("share", "delta"):
            value = getattr(self, name)
            if not 0 < value < 1:
                raise InvalidRequest(
                    f"{name}: {value!r} is not allowed; it must be between 0 and 1", name
                )

    @property
    def miss_rate(self) -> float:
        """The largest that keeps it."""
        return 1 - self.share


# Certificates: so many requests are measured as were set out beforehand, and then one looks.


def p_value(requests: int, misses: int, share: float) -> float:
    """The chance of no more misses than these if fewer than `share` of all requests keep the quality (exact)."""
    return float(binom.cdf(misses, requests, 1 - share))


def share_kept(requests: int, misses: int, delta: float) -> float:
    """The share that surely keeps the quality, at confidence 1 - `delta`: Clopper and Pearson's lower bound."""
    if misses >= requests:
        return 0.0
    return float(beta.ppf(delta, requests - misses, misses + 1))


def allowed_misses(requests: int, promise: Promise) -> int | None:
    """How many of so many requests may miss for the promise to be certified; None if even none is too many."""
    fine = takewhile(
        lambda misses: p_value(requests, misses, promise.share) <= promise.delta, range(requests)
    )
    return max(fine, default=None)


def needed_requests(misses: int, promise: Promise) -> int:
    """The fewest requests that certify the promise although so many of them miss."""
    few, enough = misses, misses + 1
    while p_value(enough, misses, promise.share) > promise.delta:
        few, enough = enough, 2 * enough
    while enough - few > 1:
        middle = (few + enough) // 2
        certified = p_value(middle, misses, promise.share) <= promise.delta
        few, enough = (few, middle) if certified else (middle, enough)
    return enough


def fixed_sequence(p_values: Iterable[float], delta: float) -> int:
    """How many of an ordered list of policies are certified, the safest first.

    Learn-then-Test (Angelopoulos et al. 2021, arXiv 2110.01052) by fixed-sequence testing: each is tested at the full
    `delta` until the first one fails, which no later one survives. The chance that any of the certified breaks its
    promise is at most `delta`, on one set of requests for all. What isn't asked for needn't be measured.
    """
    return sum(1 for _ in takewhile(lambda p: p <= delta, p_values))


# Audits: requests come one by one, and one looks after each.


class Verdict(StrEnum):
    """What an audit has found."""

    OPEN = "open"
    BROKEN = "broken"
    KEPT = "kept"


def log_evidence(requests: int, misses: int, miss_rate: float, above: bool) -> float:
    """Log of an e-value against "the miss rate is at most `miss_rate`" (`above`), or against "it is at least that".

    The likelihood ratio to `miss_rate`, mixed over a Beta prior of mean `miss_rate` cut off on the side that is
    claimed. Under the hypothesis it is a non-negative supermartingale that starts at 1, whatever the requests depend
    on, as long as each one's chance of a miss given those before obeys it. So by Ville's inequality it ever exceeds
    1 / delta with a chance of delta at most (Robbins 1970; as bets: Waudby-Smith & Ramdas, arXiv 2010.09686).
    """
    a, b = 1.0, 1 / miss_rate - 1
    kept = requests - misses
    cut = beta.logsf if above else beta.logcdf
    mixed = betaln(a + misses, b + kept) + cut(miss_rate, a + misses, b + kept)
    prior = betaln(a, b) + cut(miss_rate, a, b)
    return float(mixed - prior - xlogy(misses, miss_rate) - xlog1py(kept, -miss_rate))


def miss_rate_within(requests: int, misses: int, delta: float) -> tuple[float, float]:
    """A confidence sequence: the miss rate is in all of these intervals at once, however many there are, with a chance
    of 1 - `delta` (Robbins' mixture over a Beta(1/2, 1/2) prior)."""
    kept = requests - misses
    mixed = betaln(0.5 + misses, 0.5 + kept) - betaln(0.5, 0.5)

    def excess(rate: float) -> float:
        return float(mixed - xlogy(misses, rate) - xlog1py(kept, -rate) + math.log(delta))

    # Convex in the rate, and least at the observed one.
    middle = misses / max(requests, 1)
    low = high = middle
    if excess(middle) < 0:
        ends = (NEAR_ZERO, 1 - NEAR_ZERO)
        low = brentq(excess, ends[0], middle) if misses and excess(ends[0]) > 0 else 0.0
        high = brentq(excess, middle, ends[1]) if kept and excess(ends[1]) > 0 else 1.0
    return float(low), float(high)


@dataclass(frozen=True, slots=True)
class Audit:
    """A promise under test in service. One may look after every request; the first verdict stands."""

    promise: Promise
    requests: int = 0
    misses: int = 0
    verdict: Verdict = Verdict.OPEN

    def after(self, kept: bool) -> Audit:
        """The audit with one more request. The promise is broken, or kept, when the evidence against the contrary
        reaches 1 / delta: of either verdict the chance to be wrong, ever, is at most delta."""
        seen = replace(self, requests=self.requests + 1, misses=self.misses + (not kept))
        return replace(seen, verdict=seen.judged) if self.verdict is Verdict.OPEN else seen

    def log_evidence(self, broken: bool) -> float:
        """Evidence so far that the promise is broken, or that it is kept."""
        return log_evidence(self.requests, self.misses, self.promise.miss_rate, above=broken)

    @property
    def judged(self) -> Verdict:
        """What the requests so far say."""
        enough = -math.log(self.promise.delta)
        if self.log_evidence(broken=True) >= enough:
            return Verdict.BROKEN
        return Verdict.KEPT if self.log_evidence(broken=False) >= enough else Verdict.OPEN
