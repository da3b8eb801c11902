import random

import pytest
import torch

from warpcache_ray.toyworld import codec
from warpcache_ray.toyworld.captions import sample_scene
from warpcache_ray.toyworld.scene import render, sample_layout

BLOCK_VALUES = codec.T_BLOCK * codec.S_BLOCK**2 * 3


@pytest.fixture(scope="module")
def videos() -> torch.Tensor:
    """Six rendered videos (6, 17, 64, 64, 3) in [-1, 1]."""
    rng = random.Random(8)
    scenes = [sample_scene(rng, 1) for _ in range(6)]
    return torch.stack([render(s, sample_layout(s, rng)) for s in scenes]) * 2 - 1


@pytest.fixture(scope="module")
def full(videos) -> codec.LinearCode:
    """A code with as many components as a block has values, for slightly grainy videos."""
    # Grain gives each component some energy; rendered blocks alone do not span all values.
    grain = torch.randn(videos.shape, generator=torch.Generator().manual_seed(0))
    return codec.fit((videos + 0.01 * grain).double(), BLOCK_VALUES)


def _energy(code: codec.LinearCode, videos: torch.Tensor) -> torch.Tensor:
    """(N, 5, 8, 8) squared length of each block's coefficients, in squared pixel values."""
    scale = code.std.double().view(1, -1, 1, 1, 1)
    return (code.encode(videos.double()) * scale).square().sum(1)


def test_basis_is_orthonormal(full):
    """The components are orthogonal and of unit length."""
    identity = torch.eye(BLOCK_VALUES, dtype=torch.float64)
    torch.testing.assert_close(full.basis.T @ full.basis, identity, atol=1e-8, rtol=0)


def test_all_components_keep_all_energy(full, videos):
    """With every component the coefficients carry the full energy of the centred blocks."""
    pixels = codec.LinearCode(
        full.mean, torch.eye(BLOCK_VALUES).double(), torch.ones(BLOCK_VALUES).double()
    )
    torch.testing.assert_close(_energy(full, videos), _energy(pixels, videos))


def test_components_come_in_order_of_energy(full):
    """Earlier components spread more, so that a prefix of them is the best code of its size."""
    assert full.std.isfinite().all()
    assert (full.std.diff() <= 0).all()


def test_few_components_keep_most_energy(full, videos):
    """Thirty-two of 768 components keep over 95 % of the energy."""
    short = codec.LinearCode(full.mean, full.basis[:, :32], full.std[:32])
    kept = _energy(short, videos).sum() / _energy(full, videos).sum()
    assert 0.95 < kept < 1


def test_layout_is_that_of_wan(videos):
    """17 frames of 64×64 become 5 latent frames of 8×8."""
    assert codec.fit(videos, 4).encode(videos).shape == (6, 4, 5, 8, 8)


def test_first_frame_stands_alone(videos):
    """The first latent frame depends on the first frame only, the second on frames 1 to 4 only."""
    code = codec.fit(videos, 4)
    whole, changed = code.encode(videos), videos.clone()
    changed[:, 5:] = 0
    torch.testing.assert_close(code.encode(videos[:, :1])[:, :, 0], whole[:, :, 0])
    latents = code.encode(changed)
    torch.testing.assert_close(latents[:, :, :2], whole[:, :, :2])
    assert not torch.equal(latents[:, :, 2], whole[:, :, 2])


def test_blocks_lie_where_their_pixels_are(videos):
    """Changing one 8×8 patch of four frames changes one latent position only."""
    code = codec.fit(videos, 4)
    changed = videos.clone()
    changed[:, 5:9, 16:24, 40:48] += 0.5
    different = (code.encode(changed) - code.encode(videos)).abs().amax((0, 1)) > 1e-5
    assert different.nonzero().tolist() == [[2, 2, 5]]


def test_code_survives_saving(videos, tmp_path):
    """A loaded code encodes as the saved one."""
    code = codec.fit(videos, 8)
    code.save(tmp_path / "code.safetensors")
    loaded = codec.LinearCode.load(tmp_path / "code.safetensors")
    torch.testing.assert_close(loaded.encode(videos), code.encode(videos))
