"""Site `output`: a whole denoiser call is computed, or replaced by a few operations on latents."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from warpcache_ray.core.policy import Reading
from warpcache_ray.core.types import Action, Decision, Features, Grid, Outcome
from warpcache_ray.engine.call import Call, deliberate
from warpcache_ray.engine.ranks import OneRank
from warpcache_ray.engine.session import SessionStore
from warpcache_ray.engine.streams import Beside
from warpcache_ray.models.adapter import ModelAdapter, Pack, packed


@dataclass(frozen=True, slots=True)
class OutputForm:
    """How one denoiser call is given its latent, and gives its output: `noisy` are the latent's channels that are
    denoised, which lie along `axis`."""

    noisy: Tensor
    axis: int
    pack: Pack
    return_dict: bool

    @staticmethod
    def of(
        adapter: ModelAdapter | None, config: Any, latent: Tensor, arguments: Mapping[str, Any]
    ) -> OutputForm:
        """That of a call with these arguments."""
        pack, told = (adapter.pack if adapter else packed), arguments.get("return_dict", True)
        if adapter is None:
            axis = 2 if latent.ndim == 3 else 1
            return OutputForm(noisy_part(config, latent), axis, pack, told)
        axis = adapter.latent.index("c")
        denoised = config.get(adapter.noisy) or latent.shape[axis]
        noisy = latent.narrow(axis, 0, min(denoised, latent.shape[axis]))
        return OutputForm(noisy, axis, pack, told)

    def blank(self, config: Any) -> Any:
        """What says nothing: zeros, for variances too where the model learned these."""
        count = self.noisy.shape[self.axis]
        given = 2 * count if config.get("learn_sigma") else config.get("out_channels") or count
        zeros = torch.zeros_like(self.noisy)
        extra = zeros.narrow(self.axis, 0, min(given - count, count)) if given > count else None
        return self.write(zeros, (extra,))

    def read(self, out: Any) -> tuple[Tensor, Beside]:
        """The denoised latent in an output, and what the model gives beside it: learned variances, then audio."""
        if isinstance(out, Tensor):
            out = (out,)
        first, *others = out.to_tuple() if hasattr(out, "to_tuple") else out
        count = self.noisy.shape[self.axis]
        variances = first.shape[self.axis] - count
        if variances == 0:
            return first, (None, *others)
        latent = first.narrow(self.axis, 0, count)
        return latent, (first.narrow(self.axis, count, variances), *others)

    def write(self, latent: Tensor, beside: Beside = (None,)) -> Any:
        """What `read` read, in the form that the pipeline expects."""
        variances, *others = beside
        if variances is not None:
            latent = torch.cat((latent, variances), self.axis)
        return self.pack((latent, *others), self.return_dict)  # type: ignore[arg-type]


def denoise(
    call: Call,
    form: OutputForm,
    blocks: int,
    store: SessionStore,
    proceed: Callable[[], Any],
) -> Any:
    """What the denoiser gives for the latent (batch, channels, ...), or what the policy puts in its place.

    Latents are the same on every rank, so what is measured on them needs no sum.
    """
    latent = form.noisy
    policy, state = call.policy, call.state(latent)
    features = Features(latent, latent, call.grid)
    misfit = policy.misfit(features)
    decision = Decision(Action.RECOMPUTE, misfit) if misfit else policy.forced(state, call.step)
    reading = Reading()
    if decision is None:
        decision, reading = deliberate(policy, state, features, call.step, OneRank())
    trail = policy.trail(state, call.step, features, reading, decision)
    if decision.skips:
        assert state.latest is not None
        residual = policy.approximate(state, features, reading, decision)
        call.session.outcomes[call.where.transformer] = Outcome(call.step, decision, residual)
        call.commit(store, state.after_skip(trail), decision, 0, blocks)
        return form.write(residual, state.latest.beside)
    out = proceed()
    (residual, beside), name = form.read(out), call.where.transformer
    memo, delivered = state.memo, residual
    if not misfit:
        memo = policy.note(state, call.step, residual)
        delivered = policy.deliver(replace(state, memo=memo), call.step, residual)
    snapshot = replace(policy.remember(call.step, features, residual), beside=beside)
    if delivered is not residual:
        peer = state.peer.residual if state.peer else None
        snapshot = replace(snapshot, delivered=delivered, peer=peer)
        out = form.write(delivered, beside)
    call.session.memos[name] = memo
    call.session.outcomes[name] = Outcome(call.step, decision, residual)
    state = state.after_recompute(snapshot, policy.window, trail)
    call.commit(store, state, decision, blocks, 0)
    return out


def noisy_part(config: Any, latent: Tensor) -> Tensor:
    """The channels that are denoised, of a model without an adapter; models with conditioning images concatenate those
    after them."""
    concatenated = latent.ndim == 5 and latent.shape[1] == getattr(config, "in_channels", None)
    return latent[:, : getattr(config, "out_channels", None)] if concatenated else latent


def latent_grid(latent: Tensor, axes: str | None = None) -> Grid:
    """Frames × rows × columns of a latent with these axes; of packed tokens one row. Without an adapter the axes are
    told by their number."""
    axes = axes or {3: "bnc", 4: "bchw"}.get(latent.ndim, "bcthw")
    size = dict(zip(axes, latent.shape, strict=True))
    return Grid(size.get("t", 1), size.get("h", 1), size.get("w", size.get("n", 1)))
