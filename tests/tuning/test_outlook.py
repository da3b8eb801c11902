"""What few runs say of all requests: against simulated ones, and by its own rules."""

from __future__ import annotations

import numpy as np
import pytest

from warpcache_ray.tuning.outlook import (
    DEPTH,
    PRIOR_LEVEL,
    PRIOR_SPREAD,
    TIPPING,
    Metric,
    Outlook,
    decibels,
    fewest_calls,
    predicted,
    quality,
)


@pytest.mark.parametrize(("metric", "value", "db"), [("psnr", 35.0, 35.0), ("ssim", 0.99, 25.0)])
def test_both_qualities_have_decibels(metric: Metric, value: float, db: float) -> None:
    """PSNR its own, SSIM those of its square error; equal videos have a finite number of them."""
    assert decibels(metric, value) == pytest.approx(db)
    assert quality(metric, db) == pytest.approx(value)
    assert np.isfinite(decibels(metric, 1.0))
    assert predicted(0.001) == pytest.approx(30)
    assert predicted(0.0) == 100


def test_share_and_bound_are_one_statement() -> None:
    """The share that reaches the bound of a share is that share; it rises with quality and falls with the target."""
    outlook = Outlook("psnr", (17.0, 21.0, 18.5, 20.0), 4)
    for share in (0.5, 0.9, 0.95):
        assert outlook.share(20.0, outlook.bound(20.0, share)) == pytest.approx(share)
    shares = [outlook.share(db, 35.0) for db in range(0, 40, 4)]
    assert (np.diff(shares) > 0).all()
    # The median is the mean's, less a little for those that tip over.
    assert 38.6 < outlook.bound(20.0, 0.5) < 39.125
    assert outlook.bound(20.0, 0.95) < outlook.bound(20.0, 0.9)


def test_wide_and_few_runs_are_a_warning() -> None:
    """More spread or fewer requests: less is promised. Without any run, it is what the demo models show."""
    calm, wild = Outlook("psnr", (18.0, 20.0) * 4, 8), Outlook("psnr", (10.0, 28.0) * 4, 8)
    few = Outlook("psnr", (18.0, 20.0), 2)
    assert wild.bound(0, 0.95) < few.bound(0, 0.95) < calm.bound(0, 0.95)
    assert Outlook("psnr").bound(0, 0.5) == pytest.approx(PRIOR_LEVEL["psnr"], abs=0.5)
    assert Outlook("psnr").bound(0, 0.95) < few.bound(0, 0.95)


def test_predictions_come_true() -> None:
    """Of requests with the spread that was expected, some of which tip over, the share predicted from eight reaches the
    bound; without knowing of those it wouldn't."""
    random = np.random.default_rng(0)
    calm = random.normal(19, PRIOR_SPREAD, size=(4_000, 9))
    tipped = random.random((4_000, 9)) < TIPPING
    for share in (0.95, 0.97):
        reached = []
        for levels in calm - DEPTH * tipped:
            bound = Outlook("psnr", tuple(levels[:8]), 8).bound(0.0, share)
            reached.append(levels[8] >= bound)
        assert share - 0.005 < np.mean(reached) < share + 0.03


def test_the_fewest_calls_that_do() -> None:
    """The first budget of those allowed; none if none suffices."""
    outlook = Outlook("psnr", (19.0,) * 8, 8)

    def error(calls: int) -> float:
        return 10.0 ** (-calls / 5)

    budgets = range(1, 20)
    found = fewest_calls(outlook, error, budgets, 35.0, 0.95)
    assert found is not None
    needed = [c for c in budgets if outlook.share(2.0 * c, 35.0) >= 0.95]
    assert found == needed[0]
    assert fewest_calls(outlook, error, budgets, 90.0, 0.95) is None
