"""Kandinsky 5: a list of blocks over video tokens, after one over the text, which always runs. Channels stand last."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from warpcache_ray.models.adapter import BlockList, ModelAdapter, packed


def _bare(outputs: tuple[Tensor, ...], return_dict: bool) -> Any:
    return packed(outputs, True) if return_dict else outputs[0]


ADAPTER = ModelAdapter(
    "Kandinsky5Transformer3DModel",
    (BlockList("visual_transformer_blocks", ("visual_embed",), video="visual_embed"),),
    latent="bthwc",
    noisy="out_visual_dim",
    pack=_bare,
)
