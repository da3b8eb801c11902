"""Which policy serves a request, and where it comes from, as pure functions.

A request that gives its own policy, or wants `exact`, has that. One that names a quality (or none: `default`) has the
document that is published for its slot; one that gives a number, the SSIM to keep, has of all documents for its key the
one with the least SSIM that is enough. Where nothing is published for the key, but something for the same with more
steps, that is carried over as far as was measured to be safe. Else names have the configuration's policy, and numbers
the prior: a policy for the demo model, with its error control.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from warpcache_ray.config import Quality, ServiceConfig
from warpcache_ray.core.policy import Policy
from warpcache_ray.errors import InvalidPolicy
from warpcache_ray.policy_derivation import nearest
from warpcache_ray.policy_document import PolicyDocument, PolicyKey
from warpcache_ray.policy_slots import QUALITIES, quality_of, slot_id
from warpcache_ray.policy_spec import describe_policy, parse_policy

DEFAULT = "default"
EXACT = "exact"
OF_ERROR = 100.0
"""How many times the mean squared error a loss of SSIM is taken for, where nothing was measured: 0.99 is 40 dB."""
MOST_DB = 99.0


class Source(StrEnum):
    """Where a job's policy comes from."""

    REGISTRY = "registry"
    """The version that is active in the store."""
    CANARY = "canary"
    """The version that has a share of the requests."""
    LAST_KNOWN_GOOD = "last_known_good"
    """The version that was active when the store was last seen to have one."""
    FILE = "file"
    """A document of the configuration."""
    CONFIGURATION = "configuration"
    """The configuration's `policy` or `quality`."""
    DERIVED = "derived"
    """A document for more steps, carried over; its certificate isn't."""
    PRIOR = "prior"
    REQUEST = "request"
    """The request's own."""


@dataclass(frozen=True, slots=True)
class Offer:
    """A document for a slot."""

    slot: str
    document: PolicyDocument
    source: Source
    why: str
    version: int | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    """A policy in full, and its `origin` as the job's record has it."""

    policy: dict[str, Any]
    origin: dict[str, Any]


Asked = Quality | float | None
"""A name, the SSIM to keep, or nothing."""
Offers = Callable[[str], Sequence[Offer]]
"""What a slot offers to the job at hand, the first one to who asks for the slot."""


def given(policy: Mapping[str, Any]) -> Choice:
    """The request's own policy."""
    return Choice(dict(policy), _origin(Source.REQUEST, None, "the request's own"))


def key_of(request: Mapping[str, Any], info: Mapping[str, Any]) -> PolicyKey:
    """What a request's policy has to be for; `info` is what a replica tells of its model, with `policy_key` for the
    pipeline's defaults."""
    asked = {**request, "steps": request.get("num_inference_steps")}
    fields = [f.name for f in dataclasses.fields(PolicyKey)]
    known = {name: asked[name] for name in fields if asked.get(name) is not None}
    key = PolicyKey(**{**info["policy_key"], **known})
    # What was measured without a LoRA says nothing of the model with it.
    return replace(key, model=f"{key.model} with {asked['lora']}") if "lora" in asked else key


def choose(
    asked: Asked,
    key: PolicyKey,
    offers: Offers,
    known: Mapping[str, PolicyDocument],
    config: ServiceConfig,
) -> Choice:
    """The policy for a request for a quality, by what its slots offer; of all that is `known` the reason tells where
    they offer nothing, if none of it carries over."""
    if asked == EXACT:
        uncached = describe_policy(config.quality_policy(EXACT))
        return Choice(uncached, _origin(Source.REQUEST, asked, "exact is uncached"))
    if isinstance(asked, float):
        all_of_key = (each for quality in QUALITIES for each in offers(slot_id(quality, key)))
        offer = _enough(asked, all_of_key)
    else:
        offer = next(iter(offers(slot_id(asked or DEFAULT, key))), None)
    if offer is not None:
        origin = _origin(offer.source, asked, offer.why, offer.slot, offer.version)
        return Choice(offer.document.policy, origin)
    derived = nearest(_meant(asked, known), key)
    if derived is not None:
        steps = derived.provenance["derived_from"]["steps"]
        why = f"derived from the policy for {steps} steps; not certified for {key.steps}"
        return Choice(derived.policy, _origin(Source.DERIVED, asked, why))
    why = f"{_missing(asked, key, known)}; nothing is promised"
    if isinstance(asked, float):
        return Choice(describe_policy(prior(asked)), _origin(Source.PRIOR, asked, why))
    return configured(asked, config, why)


def configured(
    asked: Quality | None, config: ServiceConfig, why: str = "no replica is ready yet"
) -> Choice:
    """The configuration's policy for a name, or by default."""
    policy = config.default_policy if asked is None else config.quality_policy(asked)
    return Choice(describe_policy(policy), _origin(Source.CONFIGURATION, asked, why))


def prior(ssim: float) -> Policy:
    """For models that weren't profiled: the demo model's matrix, under an error control that aims at a PSNR."""
    target = 10 * math.log10(OF_ERROR / (1 - ssim))
    return parse_policy("auto", target_psnr=min(MOST_DB, round(target, 2)))


def _enough(ssim: float, offers: Iterable[Offer]) -> Offer | None:
    fine = [offer for offer in offers if _keeps(ssim, offer.document)]
    return min(fine, key=lambda offer: offer.document.target.bound, default=None)


def _keeps(ssim: float, document: PolicyDocument) -> bool:
    return document.target.metric == "ssim" and document.target.bound >= ssim


def _meant(asked: Asked, known: Mapping[str, PolicyDocument]) -> list[PolicyDocument]:
    """Those that are for what is asked, if not for its key."""
    if isinstance(asked, float):
        return [document for document in known.values() if _keeps(asked, document)]
    return [each for slot, each in known.items() if quality_of(slot) == (asked or DEFAULT)]


def _missing(asked: Asked, key: PolicyKey, known: Mapping[str, PolicyDocument]) -> str:
    """Why there is no document: the nearest one's difference, if there is any."""
    wanted = QUALITIES if isinstance(asked, float) else (asked or DEFAULT,)
    others = [document for slot, document in known.items() if quality_of(slot) in wanted]
    closest = min(others, key=lambda each: _differences(each.key, key), default=None)
    if closest is None:
        return f"no policy is published for quality {asked or DEFAULT}"
    try:
        closest.check_key(key)
    except InvalidPolicy as error:
        return error.message
    return f"no published policy keeps an SSIM of {asked}"


def _differences(one: PolicyKey, other: PolicyKey) -> int:
    names = [f.name for f in dataclasses.fields(PolicyKey)]
    return sum(getattr(one, name) != getattr(other, name) for name in names)


def _origin(
    source: Source,
    asked: Asked,
    why: str,
    slot: str | None = None,
    version: int | None = None,
) -> dict[str, Any]:
    quality = None if source is Source.REQUEST and asked is None else asked or DEFAULT
    return {
        "source": source.value,
        "quality": quality,
        "slot": slot,
        "version": version,
        "why": why,
    }
