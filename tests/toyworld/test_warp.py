from __future__ import annotations

import json
import math
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, WanImageToVideoPipeline

from warpcache_ray.toyworld import folder, folder_i2v, rollout, warp
from warpcache_ray.toyworld.rollout import Chunk
from warpcache_ray.toyworld.train.wan import build_generator

STEPS = 6


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image-to-video folder with random weights."""
    torch.manual_seed(0)
    parts = build_generator()
    torch.nn.init.normal_(parts["transformer"].proj_out.weight, std=0.02)
    vae = folder.build_vae([1.0] * folder.LATENT_CHANNELS)
    out = tmp_path_factory.mktemp("i2v")
    transformer = folder_i2v.widen(parts["transformer"])
    folder.save(out, transformer, parts["text_encoder"], vae, WanImageToVideoPipeline)
    return out


def _pipe(model: Path) -> Any:
    pipe = DiffusionPipeline.from_pretrained(model, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _chunk(content: torch.Tensor, noise: torch.Tensor) -> Chunk:
    """A model that has seen the content from the first step on."""
    sigmas = (1.0, 0.5, 0.0)
    latents = torch.stack([(1 - s) * content + s * noise for s in sigmas])
    outputs = (noise - content).expand(2, *content.shape)
    return Chunk({}, latents, outputs, sigmas, np.zeros((1, 1, 1, 3), np.float32))


def test_what_has_moved_as_a_whole_is_foretold_by_the_right_shift() -> None:
    """Content that moved two latent pixels to the right: nothing is missed by the best shift or the right flow, much
    by reuse; the chunk's own step before, which sees the same content, misses nothing."""
    torch.manual_seed(0)
    base = torch.zeros(32, 5, 8, 8)
    base[:, :, 2:5, 1:4] = torch.randn(32, 5, 3, 3)
    noise = torch.randn_like(base)
    before, after = _chunk(base, noise), _chunk(base.roll(2, -1), noise)
    flow = torch.tensor([2.0, 0.0]).view(1, 2, 1, 1).expand(1, 2, 8, 8)
    found = rollout.forecasts(before, after, flow)
    assert found["previous chunk"][0] > 0.5
    assert found["previous chunk, warped"] == pytest.approx([0, 0], abs=1e-3)
    assert found["previous chunk, best shift"] == pytest.approx([0, 0], abs=1e-3)
    assert math.isnan(found["1 steps before"][0])
    assert found["1 steps before"][1] == pytest.approx(0, abs=1e-3)
    begun = rollout.begun_from(before, after, 1, flow)
    torch.testing.assert_close(begun[0], after.latents[1], atol=1e-4, rtol=0)


def test_a_roll_out_is_written_down_as_it_was(model: Path) -> None:
    """The latents add up to the pipeline's own, each chunk begins where the last one ended, and a chunk that goes on
    from its own latent is the same."""
    pipe = _pipe(model)
    case = next(warp.cases("fast", 0))
    assert case.scene.shapes[0].speed == "fast"
    first, second = rollout.roll_out(pipe, case.scene, case.image, case.seed, STEPS, 2)
    call = {**second.call, "output_type": "latent"}
    torch.testing.assert_close(second.latents[-1:], rollout.run(pipe, call))
    image = second.call["image"][0].permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(image, first.frames[-1])
    same = rollout.continued(pipe, second, 3, second.latents[3:4])
    np.testing.assert_allclose(same, second.frames, atol=1e-4)


@pytest.mark.slow
def test_the_study_goes_on_from_what_it_has(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two scenes give two tables and curves; a second run makes nothing anew."""
    monkeypatch.setattr(warp, "THRESHOLDS", (0.08,))
    monkeypatch.setattr(warp, "BUDGETS", (3,))
    monkeypatch.setattr(warp, "BEGINNINGS", (2,))
    monkeypatch.setattr(warp, "CALIBRATION_SCENES", 2)
    asked = ["--model", str(model), "--scenes", "1", "--steps", str(STEPS), "--out", str(tmp_path)]
    warp.main(asked)
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert len(rows) == 4
    between = [row for key, row in rows.items() if key.startswith("between")]
    assert {row["auto 3"]["calls"] for row in between} == {3}
    text = (tmp_path / "warp.md").read_text()
    assert "| worldcache 0.08, warp | " in text
    assert "| fast | previous chunk, best shift | " in text
    for made in ("between_steps", "across_chunks"):
        monkeypatch.setattr(warp, made, lambda *_: pytest.fail("made anew"))
    warp.main(asked)
    assert (tmp_path / "warp.md").read_text() == text


def test_scenes_are_held_out_and_told_apart() -> None:
    """Calibration and test scenes differ, all move at the speed asked for, before a still camera."""
    chosen = [list(islice(warp.cases("slow", s), 3)) for s in (0, warp.TEST_SEED)]
    assert chosen[0][0].scene != chosen[1][0].scene
    assert {c.scene.shapes[0].speed for group in chosen for c in group} == {"slow"}
    assert {c.scene.pan for group in chosen for c in group} == {"still"}
