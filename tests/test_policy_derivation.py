"""What carries over to another number of steps, and what doesn't."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from warpcache_ray.policy_derivation import derived, nearest
from warpcache_ray.policy_document import Certificate, PolicyDocument, PolicyKey, Target

KEY = PolicyKey(
    model="tiny",
    height=64,
    width=64,
    num_frames=17,
    steps=50,
    scheduler="FlowMatchEulerDiscreteScheduler",
    shift=3.0,
    guidance_scale=4.0,
)
PROOF = Certificate(
    certified=True,
    requests=59,
    misses=0,
    allowed_misses=0,
    share=0.95,
    delta=0.05,
    share_kept=0.95,
    policies_tested=1,
    prompts_sha256="0",
)


def _document(policy: dict[str, Any] | None = None, **changes: Any) -> PolicyDocument:
    return PolicyDocument(
        key=replace(KEY, **changes),
        policy=policy or {"name": "auto", "max_calls": 14},
        target=Target("psnr", 35.0),
        expected={"calls": 14},
        certificate=PROOF,
    )


@pytest.mark.parametrize("steps", [30, 40, 49])
def test_fewer_steps_keep_the_calls(steps: int) -> None:
    """The same policy; no certificate, for another run's quality was proven; and it says where it comes from."""
    made = derived(_document(), replace(KEY, steps=steps))
    assert made is not None
    assert (made.policy, made.key.steps, made.certified) == (_document().policy, steps, False)
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
def test_nothing_else_carries_over(change: dict[str, Any]) -> None:
    """Other sizes, models or guidance, far fewer steps, or more of them."""
    assert derived(_document(), replace(KEY, **change)) is None


@pytest.mark.parametrize(
    "policy",
    [
        {"name": "teacache", "threshold": 0.1},
        {"name": "auto", "max_calls": None, "target_psnr": 35.0},
        {"name": "auto", "max_calls": 40},
    ],
)
def test_only_a_number_of_calls_carries_over(policy: dict[str, Any]) -> None:
    """And one that leaves something out."""
    assert derived(_document(policy), replace(KEY, steps=40)) is None


def test_the_nearest_serves() -> None:
    """Of several, the one with the fewest steps above those asked for; of none, none."""
    documents = [_document(steps=steps) for steps in (60, 45, 50)]
    made = nearest(documents, replace(KEY, steps=40))
    assert made is not None
    assert made.provenance["derived_from"]["steps"] == 45
    assert nearest([], KEY) is None
