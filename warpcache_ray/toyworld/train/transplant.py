"""Starts the HunyuanVideo transformer from what the Wan one knows, so that distillation begins near its teacher.

Both have the same latents, width, heads and rotary frequencies. Time embedding, input and output layers pass over as
they are; a Wan block becomes a dual-stream block by dropping its cross-attention, and a single-stream block by letting
attention and feed-forward read the same input. The text's side is new.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import HunyuanVideoTransformer3DModel, WanTransformer3DModel
from torch import Tensor, nn

DUAL, SINGLE = (0, 1), (4, 6, 7, 8, 9)
"""The Wan blocks that the dual-stream and the single-stream blocks start from; the others are left out."""

EMBEDDING_GAIN = 8.0
"""The teacher's time embeddings are so small that their activation is all but linear: added to a caption's, the two
could not tell each other what to do. The student's are larger by this factor."""


@torch.no_grad()
def transplant(teacher: WanTransformer3DModel, student: HunyuanVideoTransformer3DModel) -> None:
    """Overwrites the student's video weights with what comes closest to the teacher's."""
    times = _embed_times(teacher) * EMBEDDING_GAIN
    embedder: Any = student.time_text_embed
    known: Any = teacher.condition_embedder
    second, small = embedder.timestep_embedder.linear_2, known.time_embedder.linear_2
    second.weight.copy_(small.weight * EMBEDDING_GAIN)
    second.bias.copy_(small.bias * EMBEDDING_GAIN)
    # The student has twice as many frequencies; every other one is the teacher's.
    first, narrow = embedder.timestep_embedder.linear_1, known.time_embedder.linear_1
    first.weight.zero_()
    first.weight[:, ::2] = narrow.weight
    first.bias.copy_(narrow.bias)
    embedder.text_embedder.linear_2.weight.mul_(2)
    embedder.guidance_embedder.linear_2.weight.mul_(2)
    x_embedder: Any = student.x_embedder
    _copy(x_embedder.proj, teacher.patch_embedding)
    _copy(student.proj_out, teacher.proj_out)
    shift, scale = (teacher.scale_shift_table + times[:, None] / EMBEDDING_GAIN).unbind(1)
    norm_out: Any = student.norm_out
    _fit(norm_out.linear, times, torch.cat([scale, shift], 1))
    for block, i in zip(student.transformer_blocks, DUAL, strict=True):
        _fit(block.norm1.linear, times, _modulation(teacher, i, times).flatten(1))
        _dual(block, teacher.blocks[i])
    for block, i in zip(student.single_transformer_blocks, SINGLE, strict=True):
        _single(block, teacher.blocks[i], _modulation(teacher, i, times), times)


def _embed_times(teacher: WanTransformer3DModel) -> Tensor:
    """(T, 192): the teacher's embeddings of times from noise to data."""
    embedder: Any = teacher.condition_embedder
    times: Tensor = embedder.time_embedder(embedder.timesteps_proj(torch.linspace(10, 1000, 500)))
    return times


def _modulation(teacher: WanTransformer3DModel, i: int, times: Tensor) -> Tensor:
    """(T, 6, 192): shift, scale and gate of attention, then of feed-forward."""
    embedder: Any = teacher.condition_embedder
    block: Any = teacher.blocks[i]
    projected: Tensor = embedder.time_proj(nn.functional.silu(times / EMBEDDING_GAIN)).unflatten(
        1, (6, -1)
    )
    modulation: Tensor = block.scale_shift_table + projected
    return modulation


def _copy(to: Any, source: Any) -> None:
    to.load_state_dict(source.state_dict())


def _fit(linear: Any, times: Tensor, wanted: Tensor) -> None:
    """Least squares: `linear` of the activated time embeddings as near as it gets to `wanted` (T, out), on top of
    some of its random weights, from which captions and guidance start."""
    inputs = nn.functional.silu(times)
    random = 0.3 * linear.weight
    wanted = wanted - inputs @ random.T
    mean, target = inputs.mean(0), wanted.mean(0)
    centred = inputs - mean
    ridge = 1e-3 * centred.pow(2).sum() / len(mean) * torch.eye(len(mean))
    weight = torch.linalg.solve(centred.T @ centred + ridge, centred.T @ (wanted - target)).T
    linear.weight.copy_(weight + random)
    linear.bias.copy_(target - weight @ mean)


def _attention(to: Any, source: Any) -> None:
    """Queries, keys and values. The teacher normalises all heads together and weights each channel; the student
    normalises each head, so the teacher's weights move into the projections."""
    _copy(to.to_v, source.to_v)
    for projection, norm, old, weight in (
        (to.to_q, to.norm_q, source.to_q, source.norm_q.weight),
        (to.to_k, to.norm_k, source.to_k, source.norm_k.weight),
    ):
        projection.weight.copy_(old.weight * weight[:, None])
        projection.bias.copy_(old.bias * weight)
        norm.weight.fill_(weight.unflatten(0, (to.heads, -1)).pow(2).mean().sqrt())


def _dual(block: Any, source: Any) -> None:
    _attention(block.attn, source.attn1)
    _copy(block.attn.to_out[0], source.attn1.to_out[0])
    _copy(block.ff, source.ffn)


def _single(block: Any, source: Any, modulation: Tensor, times: Tensor) -> None:
    shift, scale, gate, ff_shift, ff_scale, ff_gate = modulation.unbind(1)
    gates = torch.stack([gate, ff_gate], -1).transpose(0, 1)
    u, s, v = torch.linalg.svd(gates, full_matrices=False)
    shared, shares = u[..., 0].T * s[:, 0].sqrt(), v[:, 0] * s[:, :1].sqrt()
    _fit(block.norm.linear, times, torch.cat([shift, scale, shared], 1))
    _attention(block.attn, source.attn1)
    out, up, down = source.attn1.to_out[0], source.ffn.net[0].proj, source.ffn.net[2]
    block.proj_out.weight.copy_(
        torch.cat([out.weight * shares[:, :1], down.weight * shares[:, 1:]], 1)
    )
    block.proj_out.bias.copy_(out.bias * shares[:, 0] + down.bias * shares[:, 1])
    ratio = ((1 + ff_scale) * (1 + scale)).mean(0) / (1 + scale).pow(2).mean(0)
    offset = (ff_shift - ratio * shift).mean(0)
    block.proj_mlp.weight.copy_(up.weight * ratio)
    block.proj_mlp.bias.copy_(up.bias + up.weight @ offset)
