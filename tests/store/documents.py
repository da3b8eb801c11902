"""Policy documents as a profiler makes them, for one key."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from warpcache_ray.core.policies.auto import Auto
from warpcache_ray.policy_document import PolicyDocument, PolicyKey, Target
from warpcache_ray.policy_slots import slot_id
from warpcache_ray.policy_spec import describe_policy

KEY = PolicyKey(
    model="Toy-0-1",
    height=32,
    width=32,
    num_frames=9,
    steps=8,
    scheduler="FlowMatchEulerDiscreteScheduler",
    shift=3.0,
    guidance_scale=4.0,
)
SLOT = slot_id("default", KEY)


def document(calls: int, key: PolicyKey = KEY, ssim: float = 0.99, **of_key: Any) -> PolicyDocument:
    """One that promises an SSIM with so many calls."""
    return PolicyDocument(
        key=replace(key, **of_key),
        policy=json.loads(json.dumps(describe_policy(Auto(max_calls=calls)))),
        target=Target("ssim", ssim),
        expected={"calls": calls},
    )
