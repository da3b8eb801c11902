"""When a step counts as a hang, with times made up."""

from __future__ import annotations

import pytest

from warpcache_ray.serving.pace import Pace, Watch, volume_of

SMALL, LARGE = 1_000, 4_000


def test_nothing_is_known_at_first() -> None:
    """Until a step was seen, and outside of denoising, only the limit ends the wait."""
    pace = Pace(factor=10, floor_s=5, limit_s=600)
    assert pace.patience(SMALL, denoising=True) == 600
    pace.saw(2.0, SMALL)
    assert pace.patience(SMALL, denoising=True) == 20
    assert pace.patience(SMALL, denoising=False) == 600


def test_patience_lies_between_floor_and_limit() -> None:
    """Fast steps leave time enough for a hiccup; slow ones no more than the limit."""
    pace = Pace(factor=10, floor_s=5, limit_s=600)
    pace.saw(0.01, SMALL)
    assert pace.patience(SMALL, denoising=True) == 5
    pace.saw(1_000.0, SMALL)
    assert pace.patience(SMALL, denoising=True) == 600


@pytest.mark.parametrize(("volume", "expected"), [(SMALL, 2.0), (LARGE, 32.0), (SMALL // 2, 2.0)])
def test_larger_videos_may_take_longer(volume: int, expected: float) -> None:
    """By the square of their size; a smaller one gets no less than what was seen."""
    pace = Pace(factor=10, floor_s=5, limit_s=600)
    pace.saw(2.0, SMALL)
    assert pace.expected(volume) == expected


def test_the_slowest_step_counts() -> None:
    """Skipped steps, which take no time, don't shorten the wait for the next computed one."""
    pace = Pace(factor=10, floor_s=5, limit_s=600)
    for seconds in (0.1, 3.0, 0.1, 0.001):
        pace.saw(seconds, SMALL)
    assert pace.patience(SMALL, denoising=True) == 30


def test_a_watch_learns_and_then_knows_a_hang() -> None:
    """Reports may leave out steps; the first step teaches nothing; afterwards ten times the slowest is too long."""
    watch = Watch(Pace(factor=10, floor_s=5, limit_s=600), SMALL, moved_at=0.0)
    watch.told(0, 0, 1.0)
    watch.check(599.0)
    with pytest.raises(TimeoutError, match=r"step 0: none other in 600\.0 s"):
        watch.check(601.0)
    watch.told(1, 9, 50.0)
    watch.told(3, 9, 54.0)
    assert watch.pace.slowest == 2.0
    watch.check(73.9)
    with pytest.raises(TimeoutError, match=r"step 3: none other in 20\.0 s"):
        watch.check(74.1)
    watch.told(9, 9, 60.0)
    watch.check(120.0)


def test_what_a_request_leaves_open_counts_as_one() -> None:
    assert volume_of({"height": 4, "width": 5, "num_frames": None}) == 20
