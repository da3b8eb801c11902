"""Ranks that decode together make the frames that one makes alone."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLHunyuanVideo, AutoencoderKLWan, DiffusionPipeline
from groups import Group
from numpy.typing import NDArray
from runs import CALL, quiet

import warpcache_ray.toyworld

Folders = dict[str, Path]
Report = Callable[[str, object], None]
Video = NDArray[np.float32]

TOYWORLD = Path(warpcache_ray.toyworld.__file__).parent
NEAR = 1e-5
"""Of the largest value: float32 rounds to 6e-8 of it. Convolutions of another height may sum in another order, and
HunyuanVideo's group norms sum over the ranks; dozens of layers carry that on."""

SHARED = [
    ("ulysses, vae", "wan", 2),
    ("ulysses, vae", "wan", 5),
    ("ulysses, vae", "wan, patched", 6),
    ("ulysses, vae", "hunyuan", 2),
    ("ulysses, vae", "hunyuan", 5),
    ("ulysses, vae", "hunyuan, attentive", 5),
    ("ulysses, vae", "cosmos", 4),
    ("cfg, vae", "wan", 5),
]


def patched_wan() -> AutoencoderKLWan:
    """Wan 2.2's kind: residual, with patches of 2 × 2 pixels."""
    channels = {"base_dim": 4, "decoder_base_dim": 4, "z_dim": 4, "in_channels": 12}
    statistics = {"latents_mean": [0.0] * 4, "latents_std": [1.0] * 4}
    return AutoencoderKLWan(
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        out_channels=12,
        is_residual=True,
        patch_size=2,
        scale_factor_spatial=16,
        **channels,
        **statistics,
    )


def attentive_hunyuan() -> AutoencoderKLHunyuanVideo:
    """With attention between all positions of the video, as the released one has."""
    return AutoencoderKLHunyuanVideo(
        latent_channels=4, block_out_channels=(4, 4, 4, 4), layers_per_block=1, norm_num_groups=2
    )


@pytest.fixture(scope="module")
def models(folders: Folders, tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """The tiny models, and two whose VAEs have what theirs lack."""
    root = tmp_path_factory.mktemp("vaes")
    torch.manual_seed(0)
    for name, like, vae in (
        ("wan, patched", "wan", patched_wan()),
        ("hunyuan, attentive", "hunyuan", attentive_hunyuan()),
    ):
        shutil.copytree(folders[like], root / name)
        vae.save_pretrained(root / name / "vae")
    return folders | {name: root / name for name in ("wan, patched", "hunyuan, attentive")}


def _decoded(folder: Path, latents: Video) -> Video:
    """By plain diffusers."""
    vae = DiffusionPipeline.from_pretrained(folder, dtype=torch.float32).vae
    with torch.no_grad():
        video: Video = vae.decode(torch.from_numpy(latents), return_dict=False)[0].numpy()
    return video


def _noise(rows: int) -> Video:
    made = np.random.default_rng(rows).standard_normal((1, 4, 3, rows, 6))
    return made.astype(np.float32)


def _off(one: Video, two: Video) -> float:
    """How far apart, as a share of the largest value."""
    return float(abs(one - two).max() / abs(one).max())


@pytest.mark.parametrize(("layout", "model", "rows"), SHARED)
def test_two_ranks_decode_what_one_decodes(
    pair: Group, models: Folders, layout: str, model: str, rows: int, record_property: Report
) -> None:
    """All frames on both ranks, with rows that two divides and that it doesn't; but for rounding, see NEAR."""
    latents = _noise(rows)
    one = _decoded(models[model], latents)
    given = {"folder": str(models[model]), "latents": latents}
    (first, _), (second, _) = pair.run(layout, "decode", **given)
    np.testing.assert_array_equal(first, second)
    record_property("furthest, as a share of the largest value", f"{_off(one, first):.1e}")
    assert _off(one, first) <= NEAR
    (apart, _), _ = pair.run(layout, "decode", apart=True, **given)
    assert _off(one, apart) > 100 * NEAR, "a seam would not be noticed"


@pytest.mark.parametrize("model", ["wan", "hunyuan", "cosmos"])
def test_the_first_rank_has_the_video(pair: Group, folders: Folders, model: str) -> None:
    """The same latents as where it decodes alone, the same 8-bit frames up to a step of rounding; the other keeps
    none."""
    folder = str(folders[model])
    (alone, latents), _ = pair.run("ulysses", "video", folder=folder)
    (frames, first), (none, second) = pair.run("ulysses, vae", "video", folder=folder)
    assert first == second == latents
    assert none.size == 0
    assert frames.shape == alone.shape
    assert abs(frames.astype(int) - alone.astype(int)).max() <= 1


def test_videos_with_too_few_rows_are_refused(pair: Group, models: Folders) -> None:
    """On both ranks at the first step, with the height that works; the next video is made."""
    folder = str(models["wan, patched"])
    for kind, message in pair.run("ulysses, vae", "refused", folder=folder):
        assert kind == "InvalidRequest"
        assert "height = 32: not every rank has rows to decode (parallel.vae)" in message
        assert "it must be 64 or more" in message
    pair.run("ulysses, vae", "generate", folder=folder, height=64, num_inference_steps=1)
    (video, _), _ = pair.run("ulysses, vae", "decode", folder=folder, latents=_noise(4))
    assert video.shape[-2] == 64


def test_memory_that_suffices_for_no_rank_ends_the_one_video(pair: Group, folders: Folders) -> None:
    """Both fail with oom, and then make the next one as if nothing had been."""
    folder = str(folders["wan"])
    (clean, _), _ = pair.run("ulysses, vae", "video", folder=folder)
    (frames, _), _ = pair.run("ulysses, vae", "video_after_oom", folder=folder)
    np.testing.assert_array_equal(clean, frames)


@pytest.mark.slow
@pytest.mark.parametrize("exhausted", [0, 1])
def test_memory_that_suffices_for_one_rank_alone_fails_at_once(
    folders: Folders, exhausted: int
) -> None:
    """The one that runs out fails with oom and doesn't try again; the other waits for it, until the group is ended."""
    group = Group()
    with pytest.raises(RuntimeError, match="OutOfMemory: the model ran out of memory") as caught:
        group.run("ulysses, vae", "video", folder=str(folders["wan"]), exhausted=(exhausted,))
    assert f"rank {exhausted}: " in str(caught.value)
    assert f"rank {1 - exhausted}: " not in str(caught.value)
    assert not group.processes


@pytest.mark.slow
def test_four_ranks_decode_what_one_decodes(models: Folders) -> None:
    """Cond's ranks and uncond's together; those in the middle have two neighbours, and none need have as many rows."""
    group = Group(4)
    try:
        for model, rows in (("wan", 4), ("wan", 6), ("wan, patched", 10)):
            one, folder = _decoded(models[model], _noise(rows)), str(models[model])
            given = {"folder": folder, "latents": _noise(rows)}
            for video, _ in group.run("ulysses × cfg, vae", "decode", **given):
                assert _off(one, video) <= NEAR
    finally:
        group.stop()


@pytest.mark.slow
@pytest.mark.parametrize("model", ["wan", "hunyuan"])
@pytest.mark.timeout(900)
def test_two_ranks_decode_trained_models(model: str, record_property: Report) -> None:
    """A video of a few steps; the seconds that one rank took and that two took are reported."""
    folder = TOYWORLD / model
    latents, one, seconds = _made(folder)
    group = Group(patience_s=300.0)
    given = {"folder": str(folder), "latents": latents}
    try:
        group.run("ulysses, vae", "decode", **given)
        (two, together), _ = group.run("ulysses, vae", "decode", **given)
    finally:
        group.stop()
    record_property("furthest, as a share of the largest value", f"{_off(one, two):.1e}")
    record_property("seconds of one rank, and of two", f"{seconds:.2f}, {together:.2f}")
    assert _off(one, two) <= NEAR


def _made(folder: Path) -> tuple[Video, Video, float]:
    """What the decoder got and gave in a plain run, and its seconds the second time."""
    pipe = quiet(DiffusionPipeline.from_pretrained(folder, dtype=torch.float32))
    decode, given = pipe.vae.decode, []
    pipe.vae.decode = lambda latents, **rest: given.append(latents) or decode(latents, **rest)
    size: dict[str, Any] = {**CALL, "height": 64, "width": 64, "num_frames": 17}
    pipe(**{**size, "num_inference_steps": 4, "prompt": "a red circle moving right"})
    with torch.no_grad():
        began = time.perf_counter()
        video = decode(given[0], return_dict=False)[0].numpy()
    return given[0].numpy(), video, time.perf_counter() - began
