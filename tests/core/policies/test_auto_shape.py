"""`auto` and the shape that it was calibrated for."""

import torch

from warpcache_ray.core.policies.auto import Auto
from warpcache_ray.core.types import Features, Grid


def test_more_tokens_or_frames_are_another_shape():
    """Whichever axis of the latent they lie along."""
    for shape, other in (((100, 64), (400, 64)), ((13, 16, 8, 8), (33, 16, 8, 8))):
        own, more = (
            Features(latent, latent, Grid(1, 1, 1))
            for latent in (torch.zeros(1, *shape), torch.zeros(1, *other))
        )
        assert Auto(shape=shape).misfit(own) is None
        assert Auto(shape=shape).misfit(more) == "calibrated for another shape"
