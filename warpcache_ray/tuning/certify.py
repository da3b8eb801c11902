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

SAFER_DB = (15.0, 6.0, 0.0)
"""How much better than the search's choice the policies of the sequence are expected to be, the safest first. Far
apart, for what misses most are requests that tip over into another video, and these take many more calls."""


def certify(
    runs: Runs,
    profile: Profile,
    fresh: Sequence[Request],
    promise: Promise,
    progress: bool = True,
) -> tuple[Auto, Certificate]:
    """The fastest policy that is certified, else the safest one, and what its runs say.

    The policies were fixed before these requests were seen. They are tested in the order of `SAFER_DB`, each at the
    full `delta`, until one fails (Learn-then-Test).
    """
    policies = sequence(profile)
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
                kept = 0
                for request in fresh:
                    score = runs.score(request, policy)
                    found = score.psnr if profile.metric == "psnr" else score.ssim
                    kept += found >= profile.target.bound
                    tell()
                misses.append(len(fresh) - kept)
                yield p_value(len(fresh), misses[-1], promise.share)

        passed = fixed_sequence(tested(), promise.delta)
        bar.total = bar.n
    # The one that is handed out is the one that the certificate is about.
    last = max(0, passed - 1)
    certificate = Certificate(
        certified=passed > 0,
        requests=len(fresh),
        misses=misses[last],
        allowed_misses=allowed_misses(len(fresh), promise),
        share=promise.share,
        delta=promise.delta,
        share_kept=round(share_kept(len(fresh), misses[last], promise.delta), 4),
        policies_tested=len(misses),
        prompts_sha256=prompts_digest(fresh),
    )
    return policies[last], certificate


def sequence(profile: Profile) -> list[Auto]:
    """The candidates, the safest first and the search's choice last."""
    chosen = profile.predicted(profile.calls)
    budgets = range(profile.calls, profile.steps + 1)
    calls = [
        next((c for c in budgets if profile.predicted(c) >= chosen + gain), profile.steps)
        for gain in SAFER_DB
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
