"""Site `output`: a whole denoiser call is computed, or replaced by a few operations on latents."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from warpcache_ray.core.policy import Reading
from warpcache_ray.core.types import Features, Grid, Outcome
from warpcache_ray.engine.call import Call, deliberate
from warpcache_ray.engine.ranks import OneRank
from warpcache_ray.engine.session import SessionStore

Wrap = Callable[[Tensor], Any]
"""Puts a denoiser's output into the form that the pipeline expects."""


def denoise(
    call: Call,
    latent: Tensor,
    blocks: int,
    store: SessionStore,
    proceed: Callable[[], Any],
    wrap: Wrap,
) -> Any:
    """What the denoiser gives for `latent` (batch, channels, ...), or what the policy puts in its place.

    Latents are the same on every rank, so what is measured on them needs no sum.
    """
    policy, state = call.policy, call.state(latent)
    features = Features(latent, latent, call.grid)
    decision, reading = policy.forced(state, call.step), Reading()
    if decision is None:
        decision, reading = deliberate(policy, state, call.step, features, OneRank())
    if decision.skips:
        residual = policy.approximate(state, features, reading, decision)
        call.session.outcomes[call.where.transformer] = Outcome(call.step, decision, residual)
        call.commit(store, state.after_skip(), decision, 0, blocks)
        return wrap(residual)
    out = proceed()
    residual = out[0]
    name = call.where.transformer
    call.session.memos[name] = policy.note(state, call.step, residual)
    call.session.outcomes[name] = Outcome(call.step, decision, residual)
    snapshot = policy.remember(call.step, features, residual)
    call.commit(store, state.after_recompute(snapshot, policy.window), decision, blocks, 0)
    return out


def tupled(residual: Tensor) -> tuple[Tensor]:
    """How a denoiser returns its output with `return_dict=False`."""
    return (residual,)


def noisy_part(config: Any, latent: Tensor) -> Tensor:
    """The channels that are denoised; models with conditioning images concatenate those after them."""
    channels = getattr(config, "out_channels", None) or latent.shape[1]
    return latent[:, :channels] if latent.ndim == 5 else latent


def latent_grid(latent: Tensor) -> Grid:
    """Frames × rows × columns of a video latent; of packed tokens (batch, tokens, channels) one row."""
    return Grid(*latent.shape[2:]) if latent.ndim == 5 else Grid(1, 1, latent.shape[1])
