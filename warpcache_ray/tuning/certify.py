"""Proves a promise: the frozen policy on fresh requests, and safer ones before it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from tqdm import tqdm

from warpcache_ray.core.policies.auto import Auto
from warpcache_ray.errors import InvalidRequest
from warpcache_ray.guarantee import (
    Promise,
    allowed_misses,
    fixed_sequence,
    needed_requests,
    p_value,
    share_kept,
)
from warpcache_ray.policy_document import Certificate, Target, digest
from warpcache_ray.tuning.runs import Request, Runs
from warpcache_ray.tuning.search import BAR, Profile

GAINS_DB = (9.0, 4.0, 0.0, -4.0, -8.0)
"""How much better than the search's choice the policies of the sequence are expected to be, the safest first. Faster
ones are among them, for the search reckons with more requests that tip over than most models have."""


def certify(
    runs: Runs,
    profile: Profile,
    fresh: Sequence[Request],
    promise: Promise,
    progress: bool = True,
) -> tuple[Auto, Certificate]:
    """The fastest policy that is certified, else the safest one, and what its runs say.

    The policies were fixed before these requests were seen. They are tested in the order of `GAINS_DB`, each at the
    full `delta`, until one fails (Learn-then-Test). What can't pass any more isn't run to its end, but for the safest,
    which is handed out if none passes.
    """
    policies = sequence(profile)
    allowed = allowed_misses(len(fresh), promise)
    assert allowed is not None
    work = len(fresh) * (1 + sum(_budget(profile, p) for p in policies) / profile.steps)
    with tqdm(total=work, desc="certificate", disable=not progress, bar_format=BAR) as bar:
        spent = runs.generations

        def tell() -> None:
            bar.update(runs.generations - spent - bar.n)

        for request in fresh:
            runs.reference(request)
            tell()
        misses: list[int] = []

        def tested() -> Iterator[float]:
            for policy in policies:
                misses.append(0)
                for request in fresh:
                    misses[-1] += not runs.score(request, policy).keeps(profile.target)
                    tell()
                    if misses[-1] > allowed and policy is not policies[0]:
                        break
                yield p_value(len(fresh), misses[-1], promise.share)

        passed = fixed_sequence(tested(), promise.delta)
        bar.total = bar.n
    # The one that is handed out is the one that the certificate is about.
    last = max(0, passed - 1)
    certificate = Certificate(
        certified=passed > 0,
        requests=len(fresh),
        misses=misses[last],
        allowed_misses=allowed,
        share=promise.share,
        delta=promise.delta,
        share_kept=round(_kept(len(fresh), misses, last, passed > 0, promise), 4),
        policies_tested=len(misses),
        prompts_sha256=prompts_digest(fresh),
    )
    return policies[last], certificate


def _kept(
    requests: int, misses: Sequence[int], chosen: int, certified: bool, promise: Promise
) -> float:
    """At least this share keeps the quality: exact for each of the policies that were looked at, so also for the one
    that was chosen among them (Bonferroni); what is certified keeps what was promised."""
    bound = share_kept(requests, misses[chosen], promise.delta / len(misses))
    return max(bound, promise.share) if certified else bound


def sequence(profile: Profile) -> list[Auto]:
    """The candidates, the safest first; the search's choice is among them."""
    chosen = profile.predicted(profile.calls)
    fewest = profile.policy.budget(profile.chart, 1)
    calls = [
        next(
            (c for c in range(fewest, profile.steps) if profile.predicted(c) >= chosen + gain),
            profile.steps,
        )
        for gain in GAINS_DB
    ]
    return [replace(profile.policy, max_calls=each) for each in dict.fromkeys(calls)]


def check_certifiable(target: Target, requests: int, promise: Promise) -> None:
    """Refuses what no certificate could come of, before anything is run.

    Raises:
        InvalidRequest: the target isn't a quality, or the requests are too few to prove anything.
    """
    if target.metric == "calls":
        raise InvalidRequest("certify: needs a quality to keep; max_calls promises none", "certify")
    least = needed_requests(0, promise)
    if requests < least:
        raise InvalidRequest(
            f"certify: {requests} is not allowed; {promise.share:.0%} of the requests at {1 - promise.delta:.0%} "
            f"confidence needs {least} or more",
            "certify",
        )


def prompts_digest(requests: Sequence[Request]) -> str:
    """Fingerprint of the prompts and their seeds."""
    listed: dict[str, Any] = {"requests": [list(request) for request in requests]}
    return digest(listed)


def _budget(profile: Profile, policy: Auto) -> int:
    return policy.budget(profile.chart)
