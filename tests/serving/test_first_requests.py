"""What a service profiles itself on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from warpcache_ray.serving.first_requests import planned
from warpcache_ray.serving.lifecycle import Job

ORIGIN = {"source": "configuration", "quality": "default", "slot": None, "version": None}
SIZE = {"height": 32, "width": 32, "num_inference_steps": 8}


def jobs(*prompts: str, **changes: Any) -> list[Job]:
    """Jobs of one size for these prompts."""
    request = {**SIZE, "seed": 1, "fps": 8, **changes}
    return [
        Job(
            f"job_{prompt}",
            request | {"prompt": prompt},
            {"name": "auto"},
            0.0,
            policy_origin=ORIGIN,
        )
        for prompt in prompts
    ]


def test_the_first_prompts_of_a_size() -> None:
    """As many different ones as it takes, in the order in which they were served, with all that shapes a run."""
    found = planned(jobs(*"abbcd"), "toy", 3, 0.99, [])
    assert found is not None
    plan = {"prompts": ["a", "b", "c"], "arguments": SIZE, "quality": 0.99}
    assert found[1] == {"model": "toy", **plan}
    assert planned(jobs(*"aabb"), "toy", 3, 0.99, []) is None
    assert planned(jobs(*"abc"), "toy", 3, 0.99, [found[0]]) is None
    assert planned(jobs(*"abc"), "another", 3, 0.99, [found[0]]) is not None


def test_each_size_by_itself() -> None:
    """The one that is first to have its prompts; then the next."""
    mixed = jobs("a", height=64) + jobs("a", "b") + jobs("b", height=64)
    name, plan = planned(mixed, "toy", 2, 0.9, []) or ("", {})
    assert plan["arguments"]["height"] == 32
    _, plan = planned(mixed, "toy", 2, 0.9, [name]) or ("", {})
    assert plan["arguments"]["height"] == 64


@pytest.mark.parametrize(
    "changes",
    [
        {"policy_origin": ORIGIN | {"source": "request"}},
        {"policy_origin": ORIGIN | {"source": "registry", "slot": "default-0", "version": 1}},
        {"policy_origin": ORIGIN | {"quality": "high"}},
        {"image": "/image.png"},
        {"removed": True},
        {"request": {**SIZE, "prompt": "a", "lora": "ink"}},
    ],
)
def test_what_says_nothing_of_the_default(changes: dict[str, Any]) -> None:
    """Jobs with a policy, a quality or an image of their own, and those that have a published policy already."""
    plain = jobs(*"ab")
    assert planned(plain, "toy", 2, 0.9, []) is not None
    assert planned([replace(job, **changes) for job in plain], "toy", 2, 0.9, []) is None
