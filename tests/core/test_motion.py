import pytest
import torch
from torch import Tensor

from warpcache_ray.core.motion import MotionField, blend_along, match_blocks, simple_blend
from warpcache_ray.core.types import Grid
from warpcache_ray.core.warp import to_maps, to_tokens

GRID = Grid(2, 12, 16)


def tokens(seed: int = 1, channels: int = 24, batch: int = 1) -> Tensor:
    shape = (batch, GRID.tokens, channels)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def shifted(features: Tensor, x: int, y: int) -> Tensor:
    return to_tokens(to_maps(features, GRID).roll((y, x), (2, 3)), features.shape[0])


@pytest.mark.parametrize("move", [(0, 0), (1, 0), (0, 1), (-2, 0), (2, -1), (-1, -2)])
def test_an_integer_shift_is_found(move):
    """Noise moved by whole tokens gives that move in every block away from the edges, exactly."""
    field = match_blocks(tokens(), shifted(tokens(), *move), GRID)
    inside = field.vectors[:, :, 6:7, 6:11]
    expected = torch.tensor(move, dtype=torch.float32).view(1, 2, 1, 1).expand_as(inside)
    torch.testing.assert_close(inside, expected)


def test_equal_moves_are_the_shortest():
    """A flat map could have moved anywhere; it stands still."""
    flat = torch.ones(2, GRID.tokens, 3)
    field = match_blocks(flat, flat, GRID)
    assert field.max == field.mean == 0.0
    blended = blend_along(flat, field, GRID)
    assert blended.mean_alpha == 0.0
    torch.testing.assert_close(blended.tokens, flat)


def test_lengths_and_interpolation():
    """A field of 3, 4 in one place: mean and greatest length, and bilinear values between the places."""
    vectors = torch.zeros(1, 2, 2, 2)
    vectors[0, :, 0, 1] = torch.tensor([3.0, 4.0])
    field = MotionField(vectors)
    assert (field.mean, field.max) == (1.25, 5.0)
    assert field.interpolate(1.0, 0.0).tolist() == [[3.0, 4.0]]
    assert field.interpolate(0.5, 0.5).tolist() == [[0.75, 1.0]]
    assert field.interpolate(9.0, -1.0).tolist() == [[3.0, 4.0]]


def test_blend_follows_the_motion():
    """Moved by two tokens, the blend lies 1 - exp(-2) of the way from the unmoved to the moved features."""
    still = tokens()
    field = MotionField(torch.tensor([2.0, 0.0]).view(1, 2, 1, 1).expand(GRID.frames, 2, *GRID[1:]))
    blend = blend_along(still, field, GRID)
    alpha = 1 - torch.exp(torch.tensor(-2.0))
    assert blend.mean_alpha == pytest.approx(float(alpha))
    expected = to_maps(still.lerp(shifted(still, 2, 0), alpha), GRID)[..., 2:]
    torch.testing.assert_close(to_maps(blend.tokens, GRID)[..., 2:], expected, atol=1e-5, rtol=1e-5)


def test_alpha_grows_with_motion():
    """Faster features are trusted less where they were."""
    alphas = [
        blend_along(tokens(), MotionField(torch.full((2, 2, *GRID[1:]), s)), GRID).mean_alpha
        for s in (0.0, 0.5, 1.0, 2.0)
    ]
    assert alphas == sorted(alphas)
    assert alphas[0] == 0.0 < alphas[1]


def test_simple_blend():
    """A plain lerp."""
    assert simple_blend(torch.zeros(2), torch.ones(2), 0.25).tolist() == [0.25, 0.25]


@pytest.mark.parametrize("grid", [Grid(1, 1, 1), Grid(3, 2, 5)])
def test_tiny_grids_and_dtypes(grid):
    """Grids smaller than a block, few channels and half precision work."""
    features = torch.randn(2, grid.tokens, 2, generator=torch.Generator().manual_seed(1)).bfloat16()
    blend = blend_along(features, match_blocks(features, features + 1, grid), grid)
    assert blend.tokens.dtype == torch.bfloat16
    assert blend.tokens.isfinite().all()
