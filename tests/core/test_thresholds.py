import pytest

from warpcache_ray.core.thresholds import motion_adaptive, phase_adaptive, phase_multiplier


@pytest.mark.parametrize(("velocity", "expected"), [(0.0, 0.08), (0.5, 0.04), (1.5, 0.02)])
def test_motion_tightens(velocity, expected):
    """Eq. 3 with α = 2: τ0 / (1 + α v)."""
    assert motion_adaptive(0.08, 2.0, velocity) == pytest.approx(expected)


@pytest.mark.parametrize(("progress", "expected"), [(0.0, 0.02), (0.25, 0.04), (1.0, 0.1)])
def test_late_phase_loosens(progress, expected):
    """Eq. 13 with β = 4: τ (1 + β t/T)."""
    assert phase_adaptive(0.02, 4.0, progress) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("fraction", "expected"),
    [(0.0, 0.5), (0.2, 0.5), (0.35, 0.75), (0.5, 1.0), (0.8, 1.5), (1.0, 1.5), (None, 1.0)],
)
def test_phase_multiplier(fraction, expected):
    """Early 0.5, late 1.5, a ramp between; 1 where the length of the run isn't known."""
    assert phase_multiplier(fraction) == pytest.approx(expected)
