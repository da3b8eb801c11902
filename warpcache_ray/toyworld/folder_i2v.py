"""The image-to-video demo model: the Wan one, given a first frame the way Wan's own image-to-video models are.

Beside the noise it sees, on further channels, which frames are given and the code of a video that shows the first frame
and then nothing (Wan 2.1 and 2.2 I2V; no image encoder).
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from torch import Tensor, nn

from warpcache_ray.toyworld import folder

FRAMES_PER_LATENT = 4
IN_CHANNELS = 2 * folder.LATENT_CHANNELS + FRAMES_PER_LATENT


def widen(text_to_video: WanTransformer3DModel) -> WanTransformer3DModel:
    """The same transformer with channels for the first frame, which it doesn't heed yet."""
    transformer = folder.build_transformer(IN_CHANNELS)
    weights = text_to_video.state_dict()
    known: Any = text_to_video.patch_embedding
    wide: Any = transformer.patch_embedding
    weights["patch_embedding.weight"] = torch.zeros_like(wide.weight)
    weights["patch_embedding.weight"][:, : folder.LATENT_CHANNELS] = known.weight.detach()
    transformer.load_state_dict(weights)
    return transformer


@torch.no_grad()
def condition(vae: AutoencoderKLWan, images: Tensor, frames: int) -> Tensor:
    """What the pipeline puts beside the noise for first frames (n, 3, rows, columns) in [-1, 1]: the mask's
    4 channels, then the code's, on the latent grid."""
    video = nn.functional.pad(images[:, :, None], (0, 0, 0, 0, 0, frames - 1))
    mean, std = (
        torch.tensor(values, device=images.device).view(1, -1, 1, 1, 1)
        for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    code = (vae.encode(video).latent_dist.mode() - mean) / std
    mask = code.new_zeros(code.shape[0], FRAMES_PER_LATENT, *code.shape[2:])
    mask[:, :, 0] = 1
    return torch.cat([mask, code], 1)
