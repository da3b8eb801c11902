"""What audits come to, as pure functions: which promise a policy is held to, what follows of what was counted, and what
is safer than a policy that broke its promise."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from warpcache_ray.guarantee import Audit, Promise, Verdict, miss_rate_within
from warpcache_ray.policy_document import PolicyDocument
from warpcache_ray.policy_spec import describe_policy, parse_policy

MOST_EVIDENCE = 100.0
"""Its logarithm, that is told: beyond all doubt, and still a number."""


def promise_of(document: PolicyDocument) -> Promise | None:
    """What its certificate promises; where it has none, what its search aimed at. None: it names no quality to keep."""
    if document.target.metric == "calls":
        return None
    if document.certificate is not None:
        return Promise(document.certificate.share, document.certificate.delta)
    return Promise(document.expected.get("share", Promise().share))


def keeps(document: PolicyDocument, found: Mapping[str, float]) -> bool:
    """Whether a request with these qualities (`psnr`, `ssim` against uncached) kept the target."""
    return found[document.target.metric] >= document.target.bound


@dataclass(frozen=True, slots=True)
class Standing:
    """A version that has requests, and what its audits have counted. `broken`: they have found so before, which no
    further request takes back."""

    version: int
    promise: Promise
    requests: int = 0
    misses: int = 0
    broken: bool = False

    @property
    def verdict(self) -> Verdict:
        """The anytime-valid one: of each, the chance to be wrong is at most the promise's delta, however often one
        looks."""
        return Verdict.BROKEN if self.broken else self._audit.judged

    @property
    def within(self) -> tuple[float, float]:
        """Where the miss rate is, with a chance of 1 - delta, however often one looks."""
        return miss_rate_within(self.requests, self.misses, self.promise.delta)

    @property
    def reason(self) -> str:
        """The verdict and its figures, for people."""
        low, high = self.within
        return (
            f"promise {self.verdict}: {self.misses} of {self.requests} audited requests missed, at least "
            f"{self.promise.share:.0%} are to keep the quality; at {1 - self.promise.delta:.0%} confidence "
            f"{1 - high:.1%} to {1 - low:.1%} of all do"
        )

    def figures(self) -> dict[str, Any]:
        """The same, for machines. The evidence is an e-value each: what reaches 1 / delta decides."""
        low, high = self.within
        return {
            "version": self.version,
            "requests": self.requests,
            "misses": self.misses,
            "verdict": self.verdict.value,
            "share": self.promise.share,
            "delta": self.promise.delta,
            "miss_rate_within": [round(low, 4), round(high, 4)],
            "evidence": {
                verdict.value: float(f"{self._evidence(verdict):.4g}")
                for verdict in (Verdict.BROKEN, Verdict.KEPT)
            },
        }

    def _evidence(self, verdict: Verdict) -> float:
        return math.exp(
            min(self._audit.log_evidence(broken=verdict is Verdict.BROKEN), MOST_EVIDENCE)
        )

    @property
    def _audit(self) -> Audit:
        return Audit(self.promise, self.requests, self.misses)


class Step(StrEnum):
    """What a service does about its policies by itself."""

    WITHDRAW = "withdraw"
    """The canary broke its promise: it goes."""
    PROMOTE = "promote"
    """The canary is proven to keep it: it comes into force."""
    ROLLBACK = "rollback"
    """The active version broke it: the one before comes back."""
    STEP_DOWN = "step_down"
    """The active version broke it, and there is none to go back to: a safer one is published."""


def due(active: Standing | None, canary: Standing | None, previous_is_good: bool) -> Step | None:
    """The next step, the first of these that applies. `previous_is_good`: there is a version to go back to whose
    promise isn't known to be broken."""
    if canary is not None and canary.verdict is Verdict.BROKEN:
        return Step.WITHDRAW
    if canary is not None and canary.verdict is Verdict.KEPT:
        return Step.PROMOTE
    if active is not None and active.verdict is Verdict.BROKEN:
        return Step.ROLLBACK if previous_is_good else Step.STEP_DOWN
    return None


def safer(document: PolicyDocument, version: int) -> PolicyDocument:
    """What takes the place of a `version` that broke its promise: half of the steps that it skips are computed too,
    where it counts them; else, and at the end of such steps, all are, with `never`. It promises the same, and that is
    tested anew."""
    steps, policy = document.key.steps, dict(document.policy)
    calls = policy.get("max_calls") or steps
    more = calls + math.ceil((steps - calls) / 2)
    if more >= steps:
        more, policy = steps, describe_policy(parse_policy("never"))
    else:
        policy["max_calls"] = more
    return replace(
        document,
        policy=policy,
        certificate=None,
        expected={**document.expected, "calls": more, "share_kept": None},
        provenance={**document.provenance, "safer_than_version": version},
    )
