import pytest
import torch
from torch import Tensor

from warpcache_ray.core.types import Grid
from warpcache_ray.core.warp import estimate_flow, move, to_maps, to_tokens, warp_tokens

GRID = Grid(2, 14, 18)
SHIFTS = [(1.0, 0.0), (0.0, 1.0), (0.5, 0.0), (0.0, -0.5), (-1.0, 0.5), (-0.5, -0.5)]


def _waves(dx: float, dy: float) -> Tensor:
    """(1, tokens, 4) smooth pattern, moved by (dx, dy) tokens in every frame."""
    y = torch.arange(GRID.rows)[:, None] - dy
    x = torch.arange(GRID.columns)[None] - dx
    waves = [
        torch.sin(0.4 * x) * torch.cos(0.35 * y + p) + torch.sin(0.3 * (x + y)) for p in (0, 1)
    ]
    maps = torch.stack((*waves, *waves))[None]
    return to_tokens(maps, 1).repeat(1, GRID.frames, 1)


@pytest.mark.parametrize("scale", [0.5, 1.0])
@pytest.mark.parametrize("shift", SHIFTS)
def test_flow_of_a_shift(shift, scale):
    """A pattern moved by up to one token gives a flow near that move, right up to the sign of each axis."""
    flow = estimate_flow(_waves(0, 0), _waves(*shift), GRID, scale)
    assert flow.shape == (GRID.frames, 2, GRID.rows, GRID.columns)
    inside = flow[..., 3:-3, 3:-3].mean((0, 2, 3))
    torch.testing.assert_close(inside, torch.tensor(shift), atol=0.12, rtol=0)


@pytest.mark.parametrize("shift", SHIFTS)
def test_residual_moves_along(shift):
    """Warped along the estimated flow, features come to lie where the moved ones are."""
    still, moved = _waves(0, 0), _waves(*shift)
    warped = warp_tokens(still, estimate_flow(still, moved, GRID, 0.5), GRID)
    assert (warped - moved).abs().mean() < 0.25 * (still - moved).abs().mean()


@pytest.mark.parametrize("pattern", ["waves", "flat"])
def test_equal_maps_stand_still(pattern):
    """Equal maps, also ones without any gradient, give zero flow, and warping along it changes nothing."""
    maps = _waves(0, 0) if pattern == "waves" else torch.ones(1, GRID.tokens, 4)
    flow = estimate_flow(maps, maps, GRID, 0.5)
    assert flow.abs().max() < 1e-5
    torch.testing.assert_close(warp_tokens(maps, flow, GRID), maps, atol=1e-4, rtol=0)


def test_move_shifts_by_whole_tokens():
    """One token to the right: columns follow, the left edge repeats."""
    maps = torch.arange(12.0).view(1, 1, 3, 4)
    flow = torch.tensor([1.0, 0.0]).view(1, 2, 1, 1).expand(1, 2, 3, 4)
    expected = torch.tensor([[0.0, 0, 1, 2], [4, 4, 5, 6], [8, 8, 9, 10]])
    torch.testing.assert_close(move(maps, flow)[0, 0], expected)


def test_maps_and_tokens_are_inverse():
    """Tokens to maps and back, with batch and frames apart and each token at its row and column."""
    tokens = torch.randn(3, GRID.tokens, 5, generator=torch.Generator().manual_seed(4))
    maps = to_maps(tokens, GRID)
    assert maps.shape == (3 * GRID.frames, 5, GRID.rows, GRID.columns)
    torch.testing.assert_close(maps[1, :, 2, 7], tokens[0, (14 + 2) * 18 + 7])
    assert torch.equal(to_tokens(maps, 3), tokens)


@pytest.mark.parametrize("grid", [Grid(1, 1, 1), Grid(2, 2, 3)])
def test_tiny_grids_stay_finite(grid):
    """Grids smaller than the window neither fail nor give nonsense."""
    before, after = torch.randn(2, 1, grid.tokens, 4, generator=torch.Generator().manual_seed(5))
    assert estimate_flow(before, after, grid, 0.5).isfinite().all()
    assert warp_tokens(before, estimate_flow(before, before, grid, 0.5), grid).isfinite().all()


def test_dtype_is_kept():
    """Half-precision features are warped in their own dtype."""
    tokens = _waves(0, 0).bfloat16()
    assert warp_tokens(tokens, estimate_flow(tokens, tokens, GRID, 0.5), GRID).dtype == tokens.dtype


@pytest.mark.parametrize("shift", [(4.0, 0.0), (-3.0, 3.0)])
def test_flow_of_several_tokens(shift):
    """Coarse levels see a move that is too long for the window of the full size."""
    grid = Grid(1, 48, 64)
    y, x = torch.meshgrid(torch.arange(grid.rows), torch.arange(grid.columns), indexing="ij")

    def pattern(dx, dy):
        waves = torch.sin(0.15 * (x - dx)) * torch.cos(0.2 * (y - dy)) + torch.sin(
            0.1 * (x - dx + y - dy)
        )
        return waves.reshape(1, -1, 1)

    flow = estimate_flow(pattern(0, 0), pattern(*shift), grid, 0.5)
    inside = flow[..., 8:-8, 8:-8].mean((0, 2, 3))
    torch.testing.assert_close(inside, torch.tensor(shift), atol=0.3, rtol=0)
