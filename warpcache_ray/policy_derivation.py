"""A profiled policy for a neighbouring request: what carries over from one number of steps to another."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from warpcache_ray.policy_document import PolicyDocument, PolicyKey

FEWEST_SHARE = 0.6
"""Of the steps that were profiled: calls that were placed in so many keep their quality in fewer. Measured on the demo
models, with 30 and 40 of 50 steps; more steps than profiled aren't among them, for the matrix says nothing of what
happens between its own."""


def derived(document: PolicyDocument, key: PolicyKey) -> PolicyDocument | None:
    """The document's policy for `key`, if that differs in nothing but somewhat fewer steps, else None.

    An `auto` policy is planned anew on the noise levels of the run at hand, with as many calls as before. What was
    certified was another run's quality, so the certificate is left behind, and the provenance says where it comes from.
    """
    same = dataclasses.replace(document.key, steps=key.steps) == key
    near = FEWEST_SHARE * document.key.steps <= key.steps < document.key.steps
    if not (same and near and document.policy["name"] == "auto"):
        return None
    calls = document.policy.get("max_calls")
    if calls is None or calls >= key.steps:
        return None
    provenance = {**document.provenance, "derived_from": dataclasses.asdict(document.key)}
    return dataclasses.replace(document, key=key, certificate=None, provenance=provenance)


def nearest(documents: Iterable[PolicyDocument], key: PolicyKey) -> PolicyDocument | None:
    """The one that is derived from the nearest number of steps, if any is."""
    found = [(doc.key.steps, made) for doc in documents if (made := derived(doc, key)) is not None]
    return min(found, key=lambda each: each[0], default=(0, None))[1]
