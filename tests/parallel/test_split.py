"""Which sizes can be shared out."""

import pytest

from warpcache_ray.errors import InvalidRequest
from warpcache_ray.parallel.split import Split

HUNYUAN_720P = {"height": 720, "width": 1280, "num_frames": 129}


def test_tokens_are_counted():
    """33 latent frames of 45 × 80 tokens; the first frame stands alone."""
    assert Split(1, 16, 4).tokens(**HUNYUAN_720P) == 33 * 45 * 80
    assert Split(1, 16, 4, depth=3).tokens(**HUNYUAN_720P) == 11 * 45 * 80


def test_what_works_is_named():
    """The nearest of each kind, above and below, works with the others as they are."""
    split = Split(7, 16, 4)
    with pytest.raises(InvalidRequest) as caught:
        split.check(**HUNYUAN_720P)
    assert "720, width = 1280, num_frames = 129: 118800 tokens" in caught.value.message
    told = caught.value.message.split("this works: ")[1].split(", ")
    assert told == [
        *("height = 672", "height = 784", "width = 1232", "width = 1344"),
        *("num_frames = 109", "num_frames = 137"),
    ]
    for name, value in (each.split(" = ") for each in told):
        split.check(**{**HUNYUAN_720P, name: int(value)})


def test_padding_makes_any_size_fit_but_the_smallest():
    """With fewer tokens than fill all but the last share, a rank would have none."""
    padded = Split(8, 16, 4, pads=True)
    padded.check(**{**HUNYUAN_720P, "height": 704})
    with pytest.raises(InvalidRequest, match="9 tokens can't be shared out over 8 ranks"):
        padded.check(48, 48, 1)


def test_one_rank_takes_all():
    """Nothing to share."""
    Split(1, 16, 4).check(16, 16, 1)


def test_rows_for_every_decoder():
    """Ranks that decode together refuse a video with fewer rows of latents than there are ranks."""
    split = Split(1, 16, 4, height=64)
    split.check(64, 16, 1)
    with pytest.raises(InvalidRequest, match=r"height = 48: .*\(parallel\.vae\); it must be 64 or"):
        split.check(48, 16, 1)
