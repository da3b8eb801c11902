"""A rank within the test profiles its model, between jobs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_ranks import attempt_at, rank_for

from warpcache_ray.policy_document import parse_document
from warpcache_ray.serving.ranks import Rank
from warpcache_ray.upkeep_config import ProfilerConfig

PLAN = {
    "group": "sha256:0123456789abcdef",
    "prompts": ["a cat", "a dog"],
    "arguments": {"height": 32, "width": 32, "num_frames": 5, "num_inference_steps": 6},
    "quality": 0.5,
}


def made(rank: Rank) -> Any:
    """The fingerprint of what a job makes under a cache."""
    attempt = attempt_at(1) | {"policy": {"name": "interval", "every": 2}}
    result, error = rank.generate(attempt, None)
    assert error is None
    return result["latents_sha256"]


def test_a_profile_is_left_off_and_gone_on_with(folders: dict[str, Path], tmp_path: Path) -> None:
    """Told so in the midst of a run, it ends before the model's next call; jobs are served as before; the next slice
    makes no run again that was whole, and in the end there is a policy for this size, and a report."""
    rank = rank_for(folders["wan"], str(tmp_path))
    maps = ProfilerConfig(sensitivity_path=str(tmp_path / "maps"))
    rank.config = replace(rank.config, profiler=maps)
    before = made(rank)
    calls = _counted(rank, hand_back_at=15)
    assert rank.profile({"id": "profile:1", **PLAN}) == ({"left": True}, None)
    # The first request's run has twelve.
    assert len(calls) == 15
    assert made(rank) == before
    assert len(list((tmp_path / "profiles").rglob("reference-*"))) == 1
    found, error = rank.profile({"id": "profile:2", **PLAN})
    assert error is None
    document = parse_document(json.loads(json.dumps(found["document"])))
    assert (document.key.height, document.key.steps) == (32, 6)
    assert document.provenance["prompts"] == 2
    assert [path.name for path in (tmp_path / "maps").iterdir()] == ["0123456789abcdef.html"]
    assert made(rank) == before
    # Whoever dies before it is told makes no run again.
    made_so_far = len(calls)
    again, error = rank.profile({"id": "profile:3", **PLAN})
    assert (again["document"]["policy"], error) == (found["document"]["policy"], None)
    assert len(calls) == made_so_far


def _counted(rank: Rank, hand_back_at: int) -> list[int]:
    calls: list[int] = []

    def called(*_: Any) -> None:
        calls.append(rank._attempt.step)
        if len(calls) == hand_back_at:
            rank.hand_back("profile:1")

    rank.engine.pipeline.transformer.register_forward_pre_hook(called)
    return calls


@pytest.mark.slow
def test_a_quality_out_of_reach_is_an_error(folders: dict[str, Path], tmp_path: Path) -> None:
    """With what can be reached; jobs are served as before."""
    rank = rank_for(folders["wan"], str(tmp_path))
    before = made(rank)
    found, error = rank.profile({"id": "profile:1", **PLAN, "quality": 0.99999999})
    assert error is not None
    assert (found, error["code"]) == ({}, "invalid_request")
    assert made(rank) == before
