"""A rank within the test: it makes a served video again, uncached, and compares."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_ranks import attempt_at, rank_for

from warpcache_ray.engine.checkpoint import Checkpoint
from warpcache_ray.serving.artifacts import Artifacts
from warpcache_ray.serving.ranks import Rank
from warpcache_ray.serving.sampling import latents_name

STEPS = 6
COARSE = {"name": "interval", "every": 3}


def served(rank: Rank, policy: dict[str, Any], **changes: Any) -> bytes:
    """The latents that a job under this policy leaves for its audit."""
    attempt = attempt_at(1, num_inference_steps=STEPS, **changes) | {"keep_latents": True}
    made, error = rank.generate(attempt | {"policy": policy}, None)
    assert error is None
    rank._aside.submit(lambda: None).result()
    kept = Artifacts(rank.config.artifacts).artifact("job_1", latents_name(1))
    assert Path(made["path"]).with_name("1-latents.pt") == kept.local
    return kept.read()


def task(name: str, **changes: Any) -> dict[str, Any]:
    """What a rank is told to audit."""
    return {"id": name, "job_id": "job_1", "request": attempt_at(1, **changes)["request"]}


def test_an_uncached_video_is_its_own_like(folders: dict[str, Path], tmp_path: Path) -> None:
    """What was served without a cache, from its kept latents, is bit for bit what an audit makes; of a cached one it
    measures how far off that is."""
    rank = rank_for(folders["wan"], str(tmp_path))
    exact = served(rank, {"name": "never"})
    coarse = served(rank, COARSE)
    found, error = rank.audit(task("a", num_inference_steps=STEPS), exact, None)
    assert (found, error) == ({"psnr": 99.0, "ssim": pytest.approx(1.0)}, None)
    found, error = rank.audit(task("b", num_inference_steps=STEPS), coarse, None)
    assert error is None
    assert found["psnr"] < 60


def test_an_audit_that_is_left_off_goes_on(folders: dict[str, Path], tmp_path: Path) -> None:
    """Told to hand it back, it ends at its next step with a checkpoint, from which another finds the same; a word to
    the one isn't for the other."""
    rank = rank_for(folders["wan"], str(tmp_path))
    coarse = served(rank, COARSE)
    whole, _ = rank.audit(task("a", num_inference_steps=STEPS), coarse, None)
    rank.hand_back("b")
    left, error = rank.audit(task("b", num_inference_steps=STEPS), coarse, None)
    assert error is None
    assert Checkpoint.from_bytes(left["left_at"]).step == 1
    made: list[int] = []
    on_step = rank._on_step
    rank._on_step = lambda own, event: made.append(event.index) or on_step(own, event)  # type: ignore[method-assign,func-returns-value]
    rest = rank.audit(task("c", num_inference_steps=STEPS), coarse, left["left_at"])
    assert rest == (whole, None)
    assert made == list(range(1, STEPS))


def test_what_cannot_be_read_is_no_video(folders: dict[str, Path], tmp_path: Path) -> None:
    """Latents that are damaged, or of a run with other steps, end the audit; they are never taken for equal."""
    rank = rank_for(folders["wan"], str(tmp_path))
    found, error = rank.audit(task("a"), b"garbage", None)
    assert error is not None
    assert (found, error["code"]) == ({}, "generation_failed")
    other = Checkpoint(9, 9, torch.zeros(1), {}, torch.Generator().get_state()).to_bytes()
    found, error = rank.audit(task("b"), other, None)
    assert error is not None
    assert found == {}


def test_only_what_is_to_be_audited_is_kept(folders: dict[str, Path], tmp_path: Path) -> None:
    """A job that nobody will audit leaves its video alone; one whose latents can't be kept is well all the same."""
    rank = rank_for(folders["wan"], str(tmp_path))
    rank.generate(attempt_at(1), None)
    rank._aside.submit(lambda: None).result()
    assert Artifacts(str(tmp_path)).names("job_1") == ["1.mp4"]
