"""Site `output`: a whole denoiser call is computed, or replaced by a few operations on latents."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor

from warpcache_ray.core.policy import Reading
from warpcache_ray.core.types import Action, Decision, Features, Grid, Outcome
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
    misfit = policy.misfit(features)
    decision = Decision(Action.RECOMPUTE, misfit) if misfit else policy.forced(state, call.step)
    reading = Reading()
    if decision is None:
        decision, reading = deliberate(policy, state, features, call.step, OneRank())
    trail = policy.trail(state, call.step, features, reading, decision)
    if decision.skips:
        residual = policy.approximate(state, features, reading, decision)
        call.session.outcomes[call.where.transformer] = Outcome(call.step, decision, residual)
        call.commit(store, state.after_skip(trail), decision, 0, blocks)
        return wrap(residual)
    out = proceed()
    residual, name = out[0], call.where.transformer
    memo, delivered = state.memo, residual
    if not misfit:
        memo = policy.note(state, call.step, residual)
        delivered = policy.deliver(replace(state, memo=memo), call.step, residual)
    snapshot = policy.remember(call.step, features, residual)
    if delivered is not residual:
        peer = state.peer.residual if state.peer else None
        snapshot = replace(snapshot, delivered=delivered, peer=peer)
        out = wrap(delivered)
    call.session.memos[name] = memo
    call.session.outcomes[name] = Outcome(call.step, decision, residual)
    state = state.after_recompute(snapshot, policy.window, trail)
    call.commit(store, state, decision, blocks, 0)
    return out


def tupled(residual: Tensor) -> tuple[Tensor]:
    """How a denoiser returns its output with `return_dict=False`."""
    return (residual,)


def noisy_part(config: Any, latent: Tensor) -> Tensor:
    """The channels that are denoised; models with conditioning images concatenate those after them."""
    concatenated = latent.ndim == 5 and latent.shape[1] == getattr(config, "in_channels", None)
    return latent[:, : getattr(config, "out_channels", None)] if concatenated else latent


def latent_grid(latent: Tensor) -> Grid:
    """Frames × rows × columns of a video latent; of packed tokens (batch, tokens, channels) one row."""
    return Grid(*latent.shape[2:]) if latent.ndim == 5 else Grid(1, 1, latent.shape[1])
