"""Cosmos' tokens over the ranks, by hooks of our own on xfuser's attention; xfuser 0.7 has no wrapper for it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import wraps
from math import ceil
from typing import Any

from diffusers import CosmosTransformer3DModel
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.transformer_cosmos import (
    CosmosAdaLayerNorm,
    CosmosAdaLayerNormZero,
)
from torch import Tensor, nn
from torch.nn.functional import pad
from xfuser.core.distributed import get_sp_group
from xfuser.model_executor.layers.usp import USP


class SharedCosmosTransformer3DModel(CosmosTransformer3DModel):  # type: ignore[misc]
    """Takes and gives what its parent does. In between each rank has the tokens of its share alone, the same number in
    a row on each, the last ones' filled up with padding; texts and images that are attended to stay whole."""

    # diffusers reads the settings off the signature.
    @wraps(CosmosTransformer3DModel.__init__)  # type: ignore[misc]
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._tokens = 0
        self.patch_embed.register_forward_hook(self._enter)
        self.rope.register_forward_hook(lambda module, args, both: tuple(map(_share, both)))
        if self.learnable_pos_embed is not None:
            self.learnable_pos_embed.register_forward_hook(lambda module, args, out: _share(out))
        for module in self.modules():
            if isinstance(module, (CosmosAdaLayerNorm, CosmosAdaLayerNormZero)):
                module.register_forward_pre_hook(_share_timesteps)
        for block in self.transformer_blocks:
            block.attn1.processor = SharedAttention()
        self.proj_out.register_forward_hook(self._leave)

    def _enter(self, module: nn.Module, args: tuple[Any, ...], embedded: Tensor) -> Tensor:
        """(batch, frames, rows, columns, channels) → (batch, 1, 1, share, channels)."""
        tokens = embedded.flatten(1, 3)
        self._tokens = tokens.shape[1]
        return _share(tokens)[:, None, None]

    def _leave(self, module: nn.Module, args: tuple[Any, ...], share: Tensor) -> Tensor:
        whole: Tensor = get_sp_group().all_gather(share.contiguous(), dim=1)
        return whole[:, : self._tokens]


class SharedAttention:
    """Self-attention of Cosmos' blocks, of each rank's share to the tokens of all. `attention_kwargs` are xfuser's."""

    def __init__(self) -> None:
        self.attention_kwargs: Mapping[str, Any] = {}

    def __call__(
        self, attn: Any, hidden_states: Tensor, image_rotary_emb: tuple[Tensor, Tensor], **_: Any
    ) -> Tensor:
        """(batch, share, channels) → the same, with the share's `image_rotary_emb` (cos and sin, share × head)."""
        query, key, value = (
            project(hidden_states).unflatten(2, (attn.heads, -1)).transpose(1, 2)
            for project in (attn.to_q, attn.to_k, attn.to_v)
        )
        query, key = (
            apply_rotary_emb(normed, image_rotary_emb, use_real_unbind_dim=-2)
            for normed in (attn.norm_q(query), attn.norm_k(key))
        )
        attended = USP(query, key, value, attention_kwargs=self.attention_kwargs)
        hidden_states = attended.transpose(1, 2).flatten(2, 3).type_as(query)
        for each in attn.to_out:
            hidden_states = each(hidden_states)
        return hidden_states


def _share(tokens: Tensor) -> Tensor:
    """This rank's (..., share, channels) of (..., tokens, channels)."""
    group = get_sp_group()
    held = ceil(tokens.shape[-2] / group.world_size)
    first = group.rank_in_group * held
    mine = tokens[..., first : first + held, :]
    return pad(mine, (0, 0, 0, held - mine.shape[-2]))


def _share_timesteps(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Of a norm's arguments those after the tokens embed the timestep: one for all, or one for each of all tokens."""
    tokens, *embedded = args
    return tokens, *(_share(each) if each.ndim == 3 else each for each in embedded)
