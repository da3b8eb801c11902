import itertools

import numpy as np
import pytest

from warpcache_ray.tuning.fits import change_polynomial, magnitude_ratios, minimax_schedule

HAND = np.array(
    [
        # to step 1, 2, 3, and the end
        [np.nan, 0.0, 4.0, 5.0, 9.0],
        [np.nan, np.nan, 0.0, 3.0, 6.0],
        [np.nan, np.nan, np.nan, 0.0, 2.0],
        [np.nan, np.nan, np.nan, np.nan, 0.0],
    ]
)


@pytest.mark.parametrize(
    ("budget", "schedule", "errors"),
    [
        (1, (0,), (9.0,)),
        (2, (0, 2), (4.0, 2.0)),
        (3, (0, 1, 2), (2.0, 0.0, 0.0)),
        (4, (0, 1, 2, 3), (0.0, 0.0, 0.0, 0.0)),
    ],
)
def test_minimax_by_hand(budget, schedule, errors):
    """Two steps: (0, 3) has errors 5 and 0, the sum less by one; (0, 2) has 4 and 2, the largest less."""
    assert minimax_schedule(HAND, budget) == (schedule, errors)


def test_ties_are_broken_by_the_next_largest():
    """Of two paths with the same worst error the one whose second worst is less; no sum, no first found."""
    errors = np.full((4, 5), 9.0)
    errors[0, 1], errors[1, 2], errors[2, 4] = 7.0, 5.0, 0.0
    errors[0, 2], errors[2, 3], errors[3, 4] = 7.0, 3.0, 3.0
    assert minimax_schedule(errors, 3) == ((0, 2, 3), (7.0, 3.0, 3.0))


@pytest.mark.parametrize("seed", range(3))
def test_minimax_is_the_best_of_all_paths(seed):
    """Against every path, on random errors with many ties."""
    errors = np.random.default_rng(seed).integers(0, 5, (8, 9)).astype(float)

    def cost(path):
        return sorted((errors[i, j] for i, j in itertools.pairwise((*path, 8))), reverse=True)

    for budget in range(1, 9):
        paths = [(0, *rest) for rest in itertools.combinations(range(1, 8), budget - 1)]
        found = minimax_schedule(errors, budget)
        assert list(found.errors) == cost(found.schedule) == min(map(cost, paths))


def test_the_last_step_can_be_required():
    """An infinite error of all runs to the end but that of the last step."""
    errors = HAND.copy()
    errors[:3, 4] = np.inf
    assert minimax_schedule(errors, 2).schedule == (0, 3)
    with pytest.raises(ValueError, match="no path of finite errors computes 1 steps"):
        minimax_schedule(errors, 1)


def test_ratios_are_means_of_quotients():
    """Over runs, and over tokens where they are told; the first step has none."""
    assert magnitude_ratios([[4.0, 2.0, 1.0], [1.0, 1.0, 1.0]]) == (1.0, 0.75, 0.75)
    assert magnitude_ratios([[[4.0, 1.0], [2.0, 1.0]]]) == (1.0, 0.75)


def test_a_polynomial_is_found_again():
    """Pairs on a fourth-degree curve give its coefficients, also for changes as small as real ones."""
    true = (4e4, -3e3, 90.0, 0.5, 0.01)
    changes = np.linspace(0.001, 0.08, 40)
    fit = change_polynomial(changes.reshape(4, 10), np.polyval(true, changes).reshape(4, 10))
    assert fit.coefficients == pytest.approx(true, rel=1e-4)
    assert fit.explained == pytest.approx(1.0)


def test_noise_is_not_explained():
    """A fit that foretells nothing says so."""
    rng = np.random.default_rng(0)
    assert change_polynomial(rng.random(400), rng.random(400)).explained < 0.05


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: minimax_schedule(np.zeros((3, 3)), 1), r"errors: shape \(3, 3\)"),
        (lambda: minimax_schedule(HAND, 0), "budget: 0 is not allowed"),
        (lambda: minimax_schedule(HAND, 5), "budget: 5 is not allowed"),
        (lambda: magnitude_ratios([1.0, 2.0]), "norms: shape"),
        (lambda: magnitude_ratios([[1.0, 0.0]]), "norms: all must be above 0"),
        (lambda: magnitude_ratios([[1.0, np.nan]]), "norms: all must be finite"),
        (lambda: change_polynomial([1.0, 2.0], [1.0]), "2 and 1 values"),
        (lambda: change_polynomial([1.0] * 9, [1.0] * 9), "more than 4 different"),
        (lambda: change_polynomial(range(9), [np.inf] * 9), "must be finite"),
    ],
)
def test_bad_recordings(call, message):
    """The error names what is wrong."""
    with pytest.raises(ValueError, match=message):
        call()
