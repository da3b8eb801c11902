"""Scenes that a policy wasn't profiled for: calm ones and fast ones, each of its kind."""

from __future__ import annotations

from warpcache_ray.toyworld.captions import canonical, parse
from warpcache_ray.toyworld.elsewhere import hurried, scenes, slowed


def test_calm_scenes_hardly_move() -> None:
    """One shape, still or slow, under a camera that doesn't move; both speeds are there."""
    calm = [slowed(scene) for scene in scenes(14, 1000)]
    assert {shape.speed for scene in calm for shape in scene.shapes} == {"still", "slow"}
    assert {scene.pan for scene in calm} == {"still"}
    assert all(parse(canonical(scene)) is not None for scene in calm)


def test_fast_scenes_all_move() -> None:
    """Two fast shapes, and the camera with them; none of these is calm."""
    fast = [hurried(scene) for scene in scenes(8, 2000, shapes=2)]
    assert {shape.speed for scene in fast for shape in scene.shapes} == {"fast"}
    assert "still" not in {scene.pan for scene in fast}
    assert {len(scene.shapes) for scene in fast} == {2}
