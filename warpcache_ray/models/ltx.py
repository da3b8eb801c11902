"""LTX-Video, and LTX-2, which makes video and sound together: one list of blocks over packed video tokens."""

from __future__ import annotations

from typing import Any

from diffusers.models.transformers.transformer_ltx2 import AudioVisualModelOutput
from torch import Tensor

from warpcache_ray.models.adapter import BlockList, ModelAdapter

_SIZES = ("num_frames", "height", "width")


def _with_audio(outputs: tuple[Tensor, ...], return_dict: bool) -> Any:
    return AudioVisualModelOutput(*outputs) if return_dict else outputs


ADAPTER = ModelAdapter(
    "LTXVideoTransformer3DModel", (BlockList("transformer_blocks"),), latent="bnc", sizes=_SIZES
)
LTX2 = ModelAdapter(
    "LTX2VideoTransformer3DModel",
    (BlockList("transformer_blocks", ("hidden_states", "audio_hidden_states")),),
    latent="bnc",
    sizes=_SIZES,
    pack=_with_audio,
)
"""Decisions are made on the video; where it is skipped, the sound is what it was at the last recompute."""
