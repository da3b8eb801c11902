"""What calibration leaves behind: the mean inner products of a denoiser's outputs along its uncached runs.

From them the error of any schedule with any linear forecast follows without running the model again.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from warpcache_ray.core.policy import require

if TYPE_CHECKING:
    from torch import Tensor

FORWARD = ("cond",)
GUIDED = ("cond", "uncond")


@dataclass(frozen=True, slots=True)
class Gram:
    """`products` is the lower triangle, row by row, of the matrix of mean products (per latent element) of the
    outputs at `sigmas` (noise levels of the steps, falling), all of `branches[0]` first, then of `branches[1]`."""

    sigmas: tuple[float, ...]
    products: tuple[float, ...] = field(repr=False)
    branches: tuple[str, ...] = GUIDED

    def __post_init__(self) -> None:
        size = len(self.sigmas) * len(self.branches)
        wanted = size * (size + 1) // 2
        count = len(self.products)
        require(count == wanted, "products", count, f"{wanted} numbers for this many steps")
        fine = all(a > b for a, b in zip(self.sigmas, self.sigmas[1:], strict=False))
        require(fine, "sigmas", self.sigmas, "falling")
        require(all(map(math.isfinite, self.products)), "products", "nan or inf", "finite numbers")
        require(self.branches in (FORWARD, GUIDED), "branches", self.branches, "cond, or both")

    @staticmethod
    def of(sigmas: tuple[float, ...], matrix: Tensor, branches: tuple[str, ...]) -> Gram:
        """The Gram of a full symmetric matrix."""
        import torch

        rows, columns = torch.tril_indices(*matrix.shape)
        products = tuple(float(f"{x:.9g}") for x in matrix[rows, columns].tolist())
        return Gram(sigmas, products, branches)

    def matrix(self) -> Tensor:
        """The full matrix, (branches · steps, branches · steps), float64."""
        import torch

        size = len(self.sigmas) * len(self.branches)
        full = torch.zeros(size, size, dtype=torch.float64)
        rows, columns = torch.tril_indices(size, size)
        full[rows, columns] = torch.tensor(self.products, dtype=torch.float64)
        return full + full.tril(-1).T

    def at(self, sigmas: tuple[float, ...]) -> Tensor:
        """The matrix on another grid of noise levels, outputs interpolated linearly in sigma."""
        import torch

        if sigmas == self.sigmas:
            return self.matrix()
        known = torch.tensor(self.sigmas[::-1], dtype=torch.float64)
        asked = torch.tensor(sigmas, dtype=torch.float64).clamp(known[0], known[-1])
        above = torch.searchsorted(known, asked).clamp(1, len(known) - 1)
        share = (asked - known[above - 1]) / (known[above] - known[above - 1])
        weights = torch.zeros(len(sigmas), len(known), dtype=torch.float64)
        row = torch.arange(len(sigmas))
        weights[row, above], weights[row, above - 1] = share, 1 - share
        eye = torch.eye(len(self.branches), dtype=torch.float64)
        both = torch.kron(eye, weights.flip(1))
        product: Tensor = both @ self.matrix() @ both.T
        return product


def outputs_gram(outputs: Tensor) -> Tensor:
    """Products of `outputs` (branches · steps, elements), per element: (branches · steps, branches · steps)."""
    double = outputs.double()
    return double @ double.T / double.shape[1]


@lru_cache(maxsize=1)
def prior() -> Gram:
    """What to expect of a flow-matching model that nobody measured: what the toy world's runs look like."""
    data = json.loads(Path(__file__).with_name("prior.json").read_text())
    return Gram(tuple(data["sigmas"]), tuple(data["products"]), tuple(data["branches"]))
