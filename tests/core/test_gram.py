import dataclasses
import math

import pytest
import torch

from warpcache_ray.core.gram import FORWARD, GUIDED, Gram, outputs_gram, prior

SIGMAS = (1.0, 0.75, 0.5, 0.25)
FINER = (1.0, 0.9, 0.6, 0.5, 0.3, 0.25)


def _lines(sigmas, branches):
    """Outputs that are a line in sigma, another one for each branch."""
    ends = torch.randn(2, 2, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    level = torch.tensor(sigmas, dtype=torch.float64)[:, None]
    return torch.cat([a + level * b for a, b in ends[: len(branches)]])


def _gram(branches, sigmas=SIGMAS):
    return Gram.of(sigmas, outputs_gram(_lines(sigmas, branches)), branches)


@pytest.mark.parametrize("branches", [FORWARD, GUIDED])
def test_the_matrix_is_read_back(branches):
    """Of the symmetric matrix half is kept, to nine digits."""
    outputs = _lines(SIGMAS, branches)
    expected = outputs @ outputs.T / 10
    torch.testing.assert_close(outputs_gram(outputs), expected)
    torch.testing.assert_close(_gram(branches).matrix(), expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("branches", [FORWARD, GUIDED])
def test_lines_are_read_on_any_grid(branches):
    """Products of outputs that are lines in sigma are exact between the calibrated levels."""
    expected = outputs_gram(_lines(FINER, branches))
    torch.testing.assert_close(_gram(branches).at(FINER), expected, rtol=1e-7, atol=1e-7)


def test_beyond_the_grid_the_nearest_level_counts():
    """What wasn't seen isn't extrapolated."""
    gram = _gram(FORWARD)
    found, known = gram.at((1.0, 0.5, 0.1)), gram.matrix()
    torch.testing.assert_close(found, known[[0, 2, 3]][:, [0, 2, 3]])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"products": (1.0,) * 9}, "products: 9 is not allowed; it must be 10 numbers"),
        ({"products": (math.nan,) * 10}, "products: 'nan or inf' is not allowed"),
        ({"sigmas": (1.0, 0.5, 0.5, 0.2)}, r"sigmas: \(1.0, 0.5, 0.5, 0.2\) .* falling"),
        ({"branches": ("uncond",)}, "branches: .*cond, or both"),
    ],
)
def test_refusals(change, told):
    """Each names the field and what is allowed."""
    with pytest.raises(ValueError, match=told):
        dataclasses.replace(_gram(FORWARD), **change)


def test_the_prior_is_a_gram_matrix():
    """Of both branches, with no negative eigenvalue beyond rounding."""
    eigenvalues = torch.linalg.eigvalsh(prior().matrix())
    assert prior().branches == GUIDED
    assert float(eigenvalues[0]) > -1e-6 * float(eigenvalues[-1])
