"""A transformer of diffusers at toy size with random weights, and a loop that denoises with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import diffusers
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn

from warpcache_ray.models import adapter_for

HEADS, HEAD, WIDTH, TEXT = 2, 16, 32, 5
CROSS = {"num_attention_heads": HEADS, "attention_head_dim": HEAD}
STEPS = 6

Extra = Callable[[Tensor], dict[str, Any]]
"""Further arguments of a call, made from its text."""


@dataclass(frozen=True)
class Toy:
    """`kind`, a class of diffusers, with this configuration, denoises the first `channels` along the latent's channel
    axis; the others are conditioning. `given` are arguments of every call but latent, timestep and text, whose width is
    `text`."""

    kind: str
    config: dict[str, Any]
    latent: tuple[int, ...]
    given: Extra = lambda text: {}
    text: int = 16
    channels: int | None = None
    timesteps: Callable[[Tensor], Tensor] = field(default=lambda t: t.expand(1))

    def build(self) -> nn.Module:
        """The transformer, the same at every call. What models start at zero isn't: nothing would change."""
        torch.manual_seed(0)
        transformer: nn.Module = getattr(diffusers, self.kind)(**self.config)
        for weight in transformer.parameters():
            if not weight.any():
                nn.init.normal_(weight, std=0.1)
        return transformer.eval()


class Loop:
    """A transformer, a scheduler, and a loop that calls cond, then uncond: a pipeline that announces nothing."""

    def __init__(self, toy: Toy, transformer: nn.Module, guided: bool = True) -> None:
        self.toy = toy
        self.transformer = transformer
        self.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
        self.branches = 1 + guided
        adapter = adapter_for(transformer)
        # Pipelines that make both branches in one call say that they are guided; this one makes two of any model.
        self.do_classifier_free_guidance = guided and not (adapter and adapter.together)
        self.guidance_scale = 3.0
        self.after_step: Callable[[int], None] = lambda index: None

    @torch.no_grad()
    def __call__(self, seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        dtype = next(self.transformer.parameters()).dtype
        random = lambda *shape: torch.randn(*shape, generator=generator).to(dtype)  # noqa: E731
        latent, texts = random(*self.toy.latent), [random(1, TEXT, self.toy.text) for _ in range(2)]
        self.scheduler.set_timesteps(STEPS)
        for index, timestep in enumerate(self.scheduler.timesteps):
            cond, *uncond = (self.call(latent, timestep, text) for text in texts[: self.branches])
            out = cond + self.guidance_scale * (cond - uncond[0]) if uncond else cond
            latent = self._stepped(latent, out, timestep)
            self.after_step(index)
        return latent

    def call(self, latent: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        """One denoiser call."""
        out = self.transformer(
            hidden_states=latent,
            timestep=self.toy.timesteps(timestep).to(latent.dtype),
            encoder_hidden_states=text,
            return_dict=False,
            **self.toy.given(text),
        )
        return out if isinstance(out, Tensor) else out[0]

    def _stepped(self, latent: Tensor, out: Tensor, timestep: Tensor) -> Tensor:
        sizes = enumerate(zip(latent.shape, out.shape, strict=True))
        axis = next((axis for axis, (given, made) in sizes if given != made), None)
        if axis is None:
            return self.scheduler.step(out, timestep, latent, return_dict=False)[0]
        # Variances that the model gives beside, or conditioning that it was given beside.
        count = min(latent.shape[axis], out.shape[axis])
        noisy, out = latent.narrow(axis, 0, count), out.narrow(axis, 0, count)
        stepped = self.scheduler.step(out, timestep, noisy, return_dict=False)[0]
        rest = latent.narrow(axis, count, latent.shape[axis] - count)
        return torch.cat((stepped, rest), axis)


def mask(text: Tensor) -> Tensor:
    """All of the text counts."""
    return torch.ones(1, text.shape[1])


def pooled(width: int) -> Extra:
    """The text as a whole."""
    return lambda text: {"pooled_projections": text.new_zeros(1, width) + text.mean()}
