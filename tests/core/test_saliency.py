import pytest
import torch

from warpcache_ray.core.saliency import token_saliency, weighted_change


def test_saliency_is_the_channels_population_variance():
    """Eq. 4 per token, whatever the mean; flat tokens have none."""
    probe = torch.tensor([[[5.0, 5.0, 5.0, 5.0], [1.0, 3.0, 1.0, 3.0]]])
    assert token_saliency(probe).tolist() == [[0.0, 1.0]]


def test_two_sums_give_the_weighted_change():
    """Σ c(1 + β Ŝ) from Σ c and Σ c·S equals the sum taken token by token (eq. 5)."""
    generator = torch.Generator().manual_seed(1)
    change, saliency = torch.rand(2, 40, generator=generator, dtype=torch.float64)
    low, high = saliency.min(), saliency.max()
    direct = (change * (1 + 0.3 * (saliency - low) / (high - low))).sum().item()
    sums = (change.sum().item(), (change * saliency).sum().item())
    assert weighted_change(*sums, low.item(), high.item(), 0.3) == pytest.approx(direct)


def test_uniform_saliency_weighs_nothing():
    """Without a spread between tokens the plain change remains."""
    assert weighted_change(3.0, 6.0, low=2.0, high=2.0, beta=0.5) == 3.0
