import math
import random
from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from warpcache_ray.toyworld import evaluate
from warpcache_ray.toyworld.captions import COLORS, KINDS, PANS, Direction, Scene, Shape
from warpcache_ray.toyworld.judge import judge
from warpcache_ray.toyworld.scene import SPEED_PX, render, sample_layout, trajectory

OPPOSITE: dict[Direction, Direction] = {
    "up": "down",
    "down": "up",
    "left": "right",
    "right": "left",
    "up-left": "down-right",
    "down-right": "up-left",
    "up-right": "down-left",
    "down-left": "up-right",
}


@pytest.fixture(scope="module")
def singles() -> list[evaluate.Example]:
    """48 held-out scenes of one shape."""
    return evaluate.held_out(0, 1, 48)


def _blurred(video: np.ndarray, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, 0.03, video.shape)
    return np.clip(ndimage.gaussian_filter(video, (0, 1, 1, 0)) + noise, 0, 1)


def _scores(examples, scenes, videos) -> dict[str, float]:
    verdicts = [judge(v, s) for v, s in zip(videos, scenes, strict=True)]
    assert len(examples) == len(verdicts)
    return {r.measure: r.value / 100 for r in evaluate.tally(verdicts, scenes) if r.cases}


def _video(scene: Scene, seed: int = 0) -> np.ndarray:
    return render(scene, sample_layout(scene, random.Random(seed))).numpy()


def test_truth_passes(singles):
    """Rendered scenes score at least 97 % on every measure."""
    scores = _scores(singles, [e.scene for e in singles], [e.truth for e in singles])
    assert len(scores) == len(evaluate.BARS)
    assert min(scores.values()) >= 0.97, scores


def test_blurred_and_noisy_truth_passes(singles):
    """A soft, noisy picture, as a generator makes it, still scores at least 90 %."""
    videos = [_blurred(e.truth, i) for i, e in enumerate(singles)]
    scores = _scores(singles, [e.scene for e in singles], videos)
    assert min(scores.values()) >= 0.9, scores


def test_truth_with_two_shapes_passes():
    """Two shapes that may cross still score at least 90 %."""
    pairs = evaluate.held_out(0, 2, 24)
    scores = _scores(pairs, [e.scene for e in pairs], [e.truth for e in pairs])
    assert min(scores.values()) >= 0.9, scores


def _wrong(scene: Scene) -> Scene:
    """The scene with nothing left right but whether its shape moves."""
    shape = scene.shapes[0]
    color = next(c for c in COLORS if c not in (shape.color, scene.background))
    kind = KINDS[(KINDS.index(shape.kind) + 1) % len(KINDS)]
    changed = replace(shape, color=color, kind=kind, direction=OPPOSITE[shape.direction])
    pan = PANS[(PANS.index(scene.pan) + 1) % len(PANS)]
    return Scene((changed,), shape.color, pan)


def test_wrong_captions_fail(singles):
    """Against another colour, kind, opposite direction, background and pan nothing scores."""
    examples = singles[:24]
    scores = _scores(examples, [_wrong(e.scene) for e in examples], [e.truth for e in examples])
    for measure in ("shape colour", "background colour", "shape kind", "direction"):
        assert scores[measure] == 0, measure
    assert scores["pan direction"] == 0


def test_motion_is_not_stillness():
    """A slow shape fails a still caption, a still shape any moving one."""
    slow, still = Shape("circle", "red", "up", "slow"), Shape("circle", "red", "up", "still")
    moved = judge(_video(Scene((slow,), "blue")), Scene((still,), "blue")).shapes[0]
    rested = judge(_video(Scene((still,), "blue")), Scene((slow,), "blue")).shapes[0]
    assert (moved.still_right, moved.direction_right) == (False, None)
    assert (rested.still_right, rested.direction_right) == (None, False)


@pytest.mark.parametrize("kind", KINDS)
def test_velocity_is_measured_below_a_pixel(kind):
    """A shape's first velocity is that of its true path, to a tenth of a pixel per frame."""
    scene = Scene((Shape(kind, "yellow", "up-left", "medium"),), "purple", "right")
    layout = sample_layout(scene, random.Random(1))
    seen = judge(_blurred(render(scene, layout).numpy(), 1), scene).shapes[0]
    path = trajectory(scene, layout, 0)
    assert seen.velocity == pytest.approx((path[6] - path[0]).div(6).tolist(), abs=0.1)
    assert seen.speed == pytest.approx(SPEED_PX["medium"], abs=0.1)


@pytest.mark.parametrize("pan", PANS)
def test_pan_is_read_from_the_background(pan):
    """Each camera motion is told from the others while the shape moves across it."""
    scene = Scene((Shape("star", "white", "down", "fast"),), "orange", pan)
    assert all(judge(_blurred(_video(scene, s), s), scene).pan == pan for s in range(3))


def test_speed_order_counts_pairs():
    """Only pairs of different words count; ties and unmeasured shapes count as wrong."""
    seen = [("still", 0.0), ("slow", 0.5), ("slow", 0.6), ("fast", 0.55), ("medium", None)]
    assert evaluate.speed_order(seen) == (4, 9)
    assert evaluate.speed_order([("slow", 1.0), ("fast", 1.0)]) == (0, 1)
    assert evaluate.speed_order([("slow", 1.0)]) == (0, 0)


@pytest.mark.parametrize("value", [0.0, 1.0, 0.5, math.nan])
def test_blank_videos_fail_quietly(value):
    """Without anything to see the verdict is wrong or None, not an exception."""
    scene = Scene((Shape("circle", "red", "up", "slow"), Shape("star", "cyan")), "blue", "left")
    verdict = judge(np.full((17, 64, 64, 3), value), scene)
    assert not verdict.pan_right
    for seen in verdict.shapes:
        assert (seen.kind, seen.velocity, seen.color_right, seen.kind_right) == (
            None,
            None,
            False,
            False,
        )
    assert verdict.shapes[0].direction_right is False
    assert verdict.shapes[1].still_right is False


def test_noise_fails_quietly():
    """Noise holds no shape of any kind."""
    scene = Scene((Shape("circle", "red", "up", "slow"),), "blue", "left")
    verdict = judge(np.random.default_rng(0).random((17, 64, 64, 3)), scene)
    assert verdict.shapes[0].kind is None
    assert not verdict.shapes[0].direction_right


def test_truth_report_is_written(tmp_path, capsys):
    """The command line with --truth writes report and contact sheet, and prints the table."""
    evaluate.main(
        ["--truth", "--captions", "4", "--two-shape", "2", "--threads", "1", "--out", str(tmp_path)]
    )
    table = capsys.readouterr().out.strip()
    assert "| shape colour | ≥ 90 % | 100.0 % (n = 4) | pass | 100.0 % (n = 4) |" in table
    assert table in (tmp_path / "report.md").read_text()
    names = {p.name for p in tmp_path.iterdir()}
    assert names == {"report.json", "report.md", "contact-sheet.png"}


def test_psnr_is_the_textbook_one():
    """An error of 0.1 is 20 dB; equality is capped, and not-a-number does not pass as equality."""
    zeros = np.zeros((2, 4, 4, 3), np.float32)
    assert evaluate.psnr(zeros, zeros + np.float32(0.1)) == pytest.approx(20, abs=1e-4)
    assert evaluate.psnr(zeros, zeros) == 99
    assert evaluate.psnr(zeros + 1, zeros * math.nan) == pytest.approx(0)
