"""Point it at a model, say how good it must stay: search, certificate, and the document that comes of them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from warpcache_ray import __version__
from warpcache_ray.core.policies.auto import Auto
from warpcache_ray.core.policy import Policy
from warpcache_ray.errors import InvalidRequest
from warpcache_ray.guarantee import Promise
from warpcache_ray.policy_document import Certificate, PolicyDocument, PolicyKey, Target
from warpcache_ray.policy_spec import describe_policy
from warpcache_ray.tuning.certify import certify, check_certifiable, prompts_digest
from warpcache_ray.tuning.runs import Request, Runs
from warpcache_ray.tuning.search import MOST_REQUESTS, Profile, search

LIBRARIES = ("torch", "diffusers", "transformers")


@dataclass(frozen=True, slots=True)
class Wish:
    """What a profile is to reach, and how thoroughly: `count` prompts for the search, `fresh` ones for the certificate
    (0: there is none).

    Raises:
        InvalidRequest: a target, a count or a promise that no profile can be made for.
    """

    target: Target
    promise: Promise = field(default_factory=Promise)
    count: int = 8
    fresh: int = 0

    def __post_init__(self) -> None:
        metric, bound = self.target.metric, self.target.bound
        name, fine, allowed = {
            "psnr": ("target_psnr", 0 < bound <= 99, "above 0 and at most 99 (dB)"),
            "ssim": ("quality", 0 < bound < 1, "between 0 and 1 (SSIM against uncached)"),
            "calls": ("max_calls", bound >= 1, "1 or more"),
        }[metric]
        if not fine or not math.isfinite(bound):
            raise InvalidRequest(f"{name}: {bound:g} is not allowed; it must be {allowed}", name)
        if not 2 <= self.count <= MOST_REQUESTS:
            raise InvalidRequest(
                f"count: {self.count} is not allowed; a search takes 2 to {MOST_REQUESTS} prompts",
                "count",
            )
        if self.fresh:
            check_certifiable(self.target, self.fresh, self.promise)

    def requests(self, prompts: Sequence[str]) -> tuple[list[Request], list[Request]]:
        """Those of the search and those of the certificate: no prompt is in both.

        Raises:
            InvalidRequest: there are too few different prompts.
        """
        different = list(dict.fromkeys(prompts))
        needed = self.count + self.fresh if self.fresh else 2
        if len(different) < needed:
            raise InvalidRequest(
                f"prompts: {len(different)} different ones are not enough; it must be {needed} or more",
                "prompts",
            )
        numbered = [Request(prompt, seed) for seed, prompt in enumerate(different)]
        return numbered[: self.count], numbered[self.count : self.count + self.fresh]


def profile_model(
    pipe: Any,
    prompts: Sequence[str],
    arguments: Mapping[str, Any],
    wish: Wish,
    work: Path,
    progress: bool = True,
) -> tuple[PolicyDocument, Profile]:
    """The policy of fewest calls that keeps what is wished, with all that it rests on. What `work` has of an earlier,
    interrupted profile of the same model and arguments isn't run again.

    Raises:
        InvalidRequest: too few prompts, runs that can't be planned, a target out of reach, or another profiler at work.
    """
    calibration, fresh = wish.requests(prompts)
    runs = Runs(pipe, arguments, work)
    with runs.locked():
        profile = search(runs, calibration, wish.target, wish.promise.share, progress)
        policy, certificate = profile.policy, None
        if fresh:
            policy, certificate = certify(runs, profile, fresh, wish.promise, progress)
    return describe(runs.key, profile, policy, certificate), profile


def describe(
    key: PolicyKey, profile: Profile, policy: Auto, certificate: Certificate | None
) -> PolicyDocument:
    """All that is known of a policy."""
    calls = policy.budget(profile.chart)
    policy = replace(policy, level=profile.level)
    expected = profile.expected_share(calls)
    return PolicyDocument(
        key=key,
        policy=_described(policy),
        target=profile.target,
        certificate=certificate,
        expected={
            "calls": calls,
            "share_kept": None if expected is None else round(expected, 4),
            "psnr": round(profile.bound("psnr", calls, profile.share), 2),
            "ssim": round(profile.bound("ssim", calls, profile.share), 5),
            "share": profile.share,
        },
        provenance=_provenance(profile, calls),
    )


def _described(policy: Policy) -> dict[str, Any]:
    """As JSON has it: what is written and what is digested are one."""
    found: dict[str, Any] = json.loads(json.dumps(describe_policy(policy)))
    return found


def _provenance(profile: Profile, calls: int) -> dict[str, Any]:
    return {
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"warpcache-ray": __version__, **{n: version(n) for n in LIBRARIES}},
        "prompts_sha256": prompts_digest(profile.requests),
        "prompts": len(profile.requests),
        "generations": round(profile.generations, 4),
        "noise_floor": {"psnr": profile.noise.psnr, "ssim": profile.noise.ssim},
        "trials": [
            {
                "prompt": trial.request.seed,
                "calls": trial.score.calls,
                "predicted_db": round(trial.predicted, 3),
                "psnr": round(trial.score.psnr, 3),
                "ssim": round(trial.score.ssim, 6),
            }
            for trial in profile.trials
        ],
        "other_policies": {
            name: {"calls": other.calls, "policy": _described(other.policy)}
            for name, other in profile.others(calls).items()
        },
        "benefit": [[round(spent, 3), calls] for spent, calls in profile.benefit()],
    }
