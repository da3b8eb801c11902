"""How growth is told from samples."""

from __future__ import annotations

from soak import Sizes, growth


def test_growth_is_from_the_beginning_to_the_end() -> None:
    """From the second tenth, when all has been used once, to the last; what came or went meanwhile is left out."""
    samples = [{"rank": Sizes(100.0 + i, 7.0 + (i > 50)), "proxy": Sizes(5, 5)} for i in range(100)]
    del samples[-1]["proxy"]
    assert growth(samples) == {"rank": Sizes(80.0, 1.0)}


def test_what_keeps_its_size_has_not_grown() -> None:
    """Two samples are enough to tell."""
    assert growth([{"rank": Sizes(5.0, 5.0)}] * 2) == {"rank": Sizes(0.0, 0.0)}
