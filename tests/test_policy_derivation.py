"""What carries over to another number of steps, and what doesn't."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from warpcache_ray.policy_derivation import derived, nearest
from warpcache_ray.policy_document import PolicyDocument

Make = Callable[..., PolicyDocument]


@pytest.mark.parametrize("steps", [30, 40, 49])
def test_fewer_steps_keep_the_calls(make_document: Make, steps: int) -> None:
    """The same policy; no certificate, for another run's quality was proven; and it says where it comes from."""
    document = make_document()
    made = derived(document, replace(document.key, steps=steps))
    assert made is not None
    assert (made.policy, made.key.steps, made.certified) == (document.policy, steps, False)
    assert made.provenance["derived_from"]["steps"] == 50


@pytest.mark.parametrize(
    "change",
    [
        {"steps": 29},
        {"steps": 50},
        {"steps": 60},
        {"steps": 40, "height": 128},
        {"steps": 40, "guidance_scale": 5.0},
        {"steps": 40, "model": "other"},
    ],
)
def test_nothing_else_carries_over(make_document: Make, change: dict[str, Any]) -> None:
    """Other sizes, models or guidance, far fewer steps, or more of them."""
    document = make_document()
    assert derived(document, replace(document.key, **change)) is None


@pytest.mark.parametrize(
    "policy",
    [
        {"name": "teacache", "threshold": 0.1},
        {"name": "auto", "max_calls": None, "target_psnr": 35.0},
        {"name": "auto", "max_calls": 40},
    ],
)
def test_only_a_number_of_calls_carries_over(make_document: Make, policy: dict[str, Any]) -> None:
    """And one that leaves something out."""
    document = make_document(policy=policy)
    assert derived(document, replace(document.key, steps=40)) is None


def test_the_nearest_serves(make_document: Make) -> None:
    """Of several, the one with the fewest steps above those asked for; of none, none."""
    documents = [make_document(steps=steps) for steps in (60, 45, 50)]
    key = replace(documents[0].key, steps=40)
    made = nearest(documents, key)
    assert made is not None
    assert made.provenance["derived_from"]["steps"] == 45
    assert nearest([], key) is None
