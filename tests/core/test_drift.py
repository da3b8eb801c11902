import math

import pytest
import torch

from warpcache_ray.core.drift import l1_sums, ratio, token_l1


def _pair() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 2, 5, 3, generator=generator).unbind()


def test_sums_are_l1_norms_per_sample():
    """Σ|a - b| and Σ|b| over tokens and channels, one number per sample."""
    current, reference = _pair()
    difference, magnitude = l1_sums(current, reference)
    for i in range(2):
        expected = torch.linalg.vector_norm(current[i] - reference[i], ord=1)
        torch.testing.assert_close(difference[i], expected)
        torch.testing.assert_close(magnitude[i], torch.linalg.vector_norm(reference[i], ord=1))


def test_token_changes_add_up_to_the_difference():
    """The per-token changes are the difference, not yet summed over tokens."""
    current, reference = _pair()
    tokens = token_l1(current, reference)
    assert tokens.shape == (2, 5)
    torch.testing.assert_close(tokens.sum(1), l1_sums(current, reference)[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_float32(dtype):
    """Sums beyond half precision's integers and range are exact."""
    ones = torch.ones(1, 1025, 65, dtype=dtype)
    difference, magnitude = l1_sums(2 * ones, ones)
    assert difference.dtype is torch.float32
    assert difference.item() == magnitude.item() == 1025 * 65
    assert token_l1(2 * ones, ones)[0, 0] == 65


@pytest.mark.parametrize(
    ("difference", "magnitude", "expected"), [(1, 4, 0.25), (0, 0, 0), (1, 0, math.inf)]
)
def test_ratio(difference, magnitude, expected):
    """A quotient; zero where nothing was there and nothing came, infinite where something came."""
    assert ratio(difference, magnitude) == expected
