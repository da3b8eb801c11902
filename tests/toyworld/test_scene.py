import random
from dataclasses import replace

import pytest
import torch

from warpcache_ray.toyworld.captions import (
    DIRECTIONS,
    KINDS,
    PANS,
    Scene,
    Shape,
    sample_scene,
    unit_vector,
)
from warpcache_ray.toyworld.scene import (
    FRAMES,
    PALETTE,
    PAN_PX,
    SIZE,
    SPEED_PX,
    Layout,
    reflect,
    render,
    sample_layout,
    signed_distance,
    trajectory,
)


def _draw(seed: int, shapes: int = 1) -> tuple[Scene, Layout]:
    rng = random.Random(seed)
    scene = sample_scene(rng, shapes)
    return scene, sample_layout(scene, rng)


def test_reflect_folds_as_a_ball_bounces():
    """Inside the walls nothing changes; beyond them the path is mirrored."""
    folded = reflect(torch.tensor([3.0, 9.0, 12.0, 19.0, -1.0]), 2.0, 10.0)
    assert folded.tolist() == pytest.approx([3.0, 9.0, 8.0, 3.0, 5.0])


def test_shapes_bounce_inside_the_screen():
    """A centre never comes nearer to an edge than the shape's radius, over hundreds of frames."""
    for seed in range(60):
        scene, layout = _draw(seed, 1 + seed % 2)
        for i, radius in enumerate(layout.radii):
            path = trajectory(scene, layout, i, frames=300)
            assert path.min() >= radius - 1e-3
            assert path.max() <= SIZE - radius + 1e-3


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_shapes_set_out_as_the_caption_says(direction):
    """For six steps, before any bounce, a shape moves at its speed in its direction."""
    for speed in ("still", "slow", "medium", "fast"):
        scene = Scene((Shape("circle", "red", direction, speed),), "blue")
        for seed in range(5):
            path = trajectory(scene, sample_layout(scene, random.Random(seed)), 0)
            step = torch.tensor(unit_vector(direction)) * SPEED_PX[speed]
            torch.testing.assert_close(path[:7].diff(dim=0), step.expand(6, 2), atol=1e-4, rtol=0)


def test_render_is_a_video_in_range():
    """A rendered scene is (frames, 64, 64, 3) float32 in [0, 1], of any length."""
    for seed in range(8):
        scene, layout = _draw(seed, 1 + seed % 2)
        video = render(scene, layout)
        assert video.shape == (FRAMES, SIZE, SIZE, 3)
        assert video.dtype == torch.float32
        assert 0 <= video.min() < video.max() <= 1
    assert render(scene, layout, frames=5).shape[0] == 5


def test_render_is_deterministic():
    """One seed gives one video, another seed another."""
    first, again, other = render(*_draw(3)), render(*_draw(3)), render(*_draw(4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_longer_video_starts_with_the_shorter():
    """The number of frames does not change the frames."""
    scene, layout = _draw(1)
    assert torch.equal(render(scene, layout, 17)[:5], render(scene, layout, 5))


@pytest.mark.parametrize("pan", PANS)
def test_a_pan_moves_the_background_against_it(pan):
    """Of all whole shifts, five frames of pan fit the one against the camera's motion best."""
    still = Scene((), "green", pan)
    video = render(still, sample_layout(still, random.Random(2)), 6)[..., 1]
    margin, inner = 8, slice(8, SIZE - 8)
    errors = {}
    for dy in range(-margin, margin + 1):
        for dx in range(-margin, margin + 1):
            moved = torch.roll(video[0], (dy, dx), (0, 1))
            errors[dx, dy] = (moved - video[5])[inner, inner].square().mean().item()
    x, y = unit_vector(pan)
    assert min(errors, key=errors.__getitem__) == (-round(5 * PAN_PX * x), -round(5 * PAN_PX * y))


def test_a_pan_leaves_the_shapes_in_place():
    """Panning changes the background only: a still shape's core stays the same pixels."""
    scene = Scene((Shape("circle", "red"),), "blue", "left")
    layout = sample_layout(scene, random.Random(0))
    still, panned = render(replace(scene, pan="still"), layout), render(scene, layout)
    x, y = (int(c) for c in layout.starts[0])
    core = slice(y - 5, y + 5), slice(x - 5, x + 5)
    assert torch.equal(still[:, core[0], core[1]], panned[:, core[0], core[1]])
    assert not torch.equal(still, panned)
    torch.testing.assert_close(panned[3, y, x], torch.tensor(PALETTE["red"]))


def test_kinds_have_about_the_same_area():
    """A shape's kind cannot be told from its area: all within 20 % of the circle's."""
    grid = torch.arange(SIZE) - SIZE / 2 + 0.5
    y, x = torch.meshgrid(grid, grid, indexing="ij")
    areas = {k: (signed_distance(k, x, y, 10.0) < 0).sum().item() for k in KINDS}
    assert all(0.8 < area / areas["circle"] < 1.2 for area in areas.values()), areas
