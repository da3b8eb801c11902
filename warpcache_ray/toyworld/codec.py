"""A linear code for toy-world videos: principal components of causal 4×8×8 pixel blocks.

The transformer learns in this space, the VAE learns to encode into it and decode from it, so the two can be
trained side by side. It has the layout of Wan's latents: the first frame alone, then groups of four.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

T_BLOCK, S_BLOCK = 4, 8


@dataclass(frozen=True, slots=True)
class LinearCode:
    """`mean` (P,) and orthonormal `basis` (P, C) for blocks of P = 4·8·8·3 values; `std` (C,) of the coefficients
    over the data, damped by a square root so that fine components keep a smaller share of the energy."""

    mean: Tensor
    basis: Tensor
    std: Tensor

    def encode(self, video: Tensor) -> Tensor:
        """(N, T, H, W, 3) in [-1, 1] → (N, C, 1 + (T-1)/4, H/8, W/8), in units of `std`."""
        return ((_blocks(video) - self.mean) @ self.basis / self.std).permute(0, 4, 1, 2, 3)

    def save(self, path: Path) -> None:
        """Writes the three tensors as safetensors."""
        tensors = {"mean": self.mean, "basis": self.basis.contiguous(), "std": self.std}
        save_file(tensors, str(path))

    @staticmethod
    def load(path: Path) -> LinearCode:
        """Reads what `save` wrote."""
        return LinearCode(**load_file(str(path)))


def _blocks(video: Tensor) -> Tensor:
    n, frames, height, width, _ = video.shape
    video = torch.cat([video[:, :1].expand(-1, T_BLOCK - 1, -1, -1, -1), video], 1)
    groups, rows, columns = 1 + (frames - 1) // T_BLOCK, height // S_BLOCK, width // S_BLOCK
    video = video.reshape(n, groups, T_BLOCK, rows, S_BLOCK, columns, S_BLOCK, 3)
    return video.permute(0, 1, 3, 5, 2, 4, 6, 7).flatten(4)


def fit(videos: Tensor, channels: int) -> LinearCode:
    """Principal component analysis of the blocks of `videos` (N, T, H, W, 3) in [-1, 1]."""
    blocks = _blocks(videos).flatten(0, 3)
    mean = blocks.mean(0)
    centred = blocks - mean
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(centred))
    basis = vectors.flip(1)[:, :channels]
    spread = values.flip(0)[:channels].clamp_min(0).sqrt()
    return LinearCode(mean, basis, (spread * spread.mean()).sqrt())
