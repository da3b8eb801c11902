import random

import pytest

from warpcache_ray.toyworld.captions import (
    DIRECTIONS,
    Scene,
    Shape,
    canonical,
    parse,
    sample_scene,
    unit_vector,
    vary,
)

YELLOW_SQUARE = Scene((Shape("square", "yellow", "left", "fast"),), "blue", "up")


def _meaning(scene: Scene) -> object:
    """The scene without the directions of still shapes, which no caption tells."""
    return [(s.kind, s.color, s.speed, s.speed != "still" and s.direction) for s in scene.shapes], (
        scene.background,
        scene.pan,
    )


def _scenes(count: int) -> list[Scene]:
    rng = random.Random(5)
    return [sample_scene(rng, 1 + i % 2) for i in range(count)]


def test_canonical_writes_the_documented_caption():
    """The plain caption of the example scene reads exactly as documented."""
    caption = "a yellow square moving left fast over a blue background, camera panning up"
    assert canonical(YELLOW_SQUARE) == caption
    assert parse(caption) == YELLOW_SQUARE


@pytest.mark.parametrize(
    "caption",
    [
        "A yellow square moving fast left over a blue background, camera panning up.",
        "a yellow square sliding quickly to the left on a blue background, the camera pans up",
        "The yellow square flies left rapidly against the blue backdrop; camera moving up",
        "yellow square, going left, fast, on blue background, camera panning upwards",
        "camera panning up, a yellow square moving left quickly over a blue background",
        "On a blue background, a yellow square glides rapidly to the left, camera panning up",
        "a big yellow square drifting leftwards fast over a textured blue background, panning up",
        "a yellow square rushing left, fast, across blue, while the camera pans up",
    ],
)
def test_parse_reads_natural_wordings(caption):
    """Other words, order, case and punctuation still mean the example scene."""
    assert parse(caption) == YELLOW_SQUARE


def test_parse_fills_in_what_a_caption_leaves_open():
    """No camera means a still one, no speed a medium one, no direction a shape at rest."""
    moving = parse("a red circle moving down on a green background")
    resting = parse("a red circle on a green background")
    assert moving == Scene((Shape("circle", "red", "down", "medium"),), "green")
    assert resting == Scene((Shape("circle", "red"),), "green")


def test_parse_keeps_two_shapes_apart():
    """Each of two shapes gets its own direction and speed."""
    caption = (
        "a white star moving up-right slow and a cyan triangle staying still "
        "over a purple background, camera panning left"
    )
    star, triangle = Shape("star", "white", "up-right", "slow"), Shape("triangle", "cyan")
    assert parse(caption) == Scene((star, triangle), "purple", "left")


@pytest.mark.parametrize(
    "caption",
    ["", "a cat on a mat", "a red circle moving left", "a blue background", "circle over blue"],
)
def test_parse_refuses_what_is_no_scene(caption):
    """Text without a coloured shape or without a background gives None."""
    assert parse(caption) is None


def test_canonical_round_trips():
    """Reading a plain caption gives back the scene, for one and two shapes."""
    for scene in _scenes(400):
        read = parse(canonical(scene))
        assert read is not None
        assert _meaning(read) == _meaning(scene), canonical(scene)


def test_varied_wordings_round_trip():
    """Reading any of the natural wordings gives back the scene."""
    rng = random.Random(6)
    for scene in _scenes(600):
        caption = vary(scene, rng)
        read = parse(caption)
        assert read is not None
        assert _meaning(read) == _meaning(scene), caption


def test_sampled_colors_differ():
    """No shape hides in the background or shares a colour with the other."""
    for scene in _scenes(200):
        colors = [scene.background, *(s.color for s in scene.shapes)]
        assert len(set(colors)) == len(colors)


def test_unit_vectors_have_unit_length_and_point_down_for_down():
    """Directions are unit vectors on a screen whose y axis points down."""
    for direction in DIRECTIONS:
        x, y = unit_vector(direction)
        assert x * x + y * y == pytest.approx(1)
    assert unit_vector("down") == (0.0, 1.0)
    assert unit_vector("still") == (0.0, 0.0)
