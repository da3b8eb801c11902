import pytest
import torch

from warpcache_ray.core.blend import extrapolate, gain, gain_sums


@pytest.mark.parametrize("slope", [-0.5, 0.0, 0.7, 1.0, 2.0])
def test_gain_recovers_a_line(slope):
    """A probe on the line through the last two gives its place on that line (eq. 9), for each sample."""
    latest, previous = torch.randn(2, 3, 8, 4, generator=torch.Generator().manual_seed(2)).double()
    probe = previous + slope * (latest - previous)
    inner, square = gain_sums(probe, latest, previous)
    torch.testing.assert_close(inner / square, torch.full((3,), slope), atol=1e-5, rtol=0)


def test_gain_is_the_best_least_squares_fit():
    """No other gain comes nearer to an arbitrary probe."""
    probe, latest, previous = torch.randn(3, 1, 8, 4, generator=torch.Generator().manual_seed(3))
    best = gain(*(s.item() for s in gain_sums(probe, latest, previous)), 10.0)

    def error(g: float) -> float:
        return (previous + g * (latest - previous) - probe).square().sum().item()

    assert error(best) < min(error(best - 0.05), error(best + 0.05))


@pytest.mark.parametrize(
    ("inner", "square", "expected"), [(3, 2, 1.5), (9, 2, 2.0), (-1, 2, 0.0), (0, 0, 1.0)]
)
def test_gain_is_clamped(inner, square, expected):
    """To [0, limit]; 1, which is plain reuse, where the two residuals are equal."""
    assert gain(inner, square, 2.0) == expected


def test_extrapolation_has_a_gain_per_sample():
    """Eq. 10: gain 0 gives the older residual, 1 the newer, 2 as far again; the dtype stays."""
    latest, previous = torch.full((3, 2, 2), 3.0).half(), torch.ones(3, 2, 2).half()
    moved = extrapolate(latest, previous, torch.tensor([0.0, 1.0, 2.0]))
    assert moved.dtype is torch.float16
    assert moved[:, 0, 0].tolist() == [1.0, 3.0, 5.0]
