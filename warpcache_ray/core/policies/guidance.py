"""FasterCache's CFG-Cache (arXiv 2410.19355): the unconditional output from the conditional one and their last gap.

û = c + w₁ low(u - c)_last + w₂ high(u - c)_last, split in space by FFT at a fifth of the shorter side; w₁ = 1 + α₁ in
the steps before `switch`, w₂ = 1 + α₂ from there on, 1 otherwise. The branch called first in a step is always computed,
so a model that is called once per step is left as it is. Packed latents have no space to split: there both w are 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from warpcache_ray.core.policy import Policy, Reading, in_retention, require
from warpcache_ray.core.types import (
    Action,
    BranchState,
    Decision,
    Features,
    Operator,
    Outcome,
    Site,
    Step,
)

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Guidance(Policy):
    """Computes the second branch at every `every`-th step after the first `retention` of the run. `switch` is a share
    of the run too; the other defaults are those of diffusers' port."""

    name: ClassVar[str] = "guidance"
    site: ClassVar[Site] = Site.OUTPUT

    every: int = 5
    alpha1: float = 0.1
    alpha2: float = 0.1
    switch: float = 0.5
    retention: float = 0.36

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.every >= 1, "every", self.every, "1 or more")
        for field in ("alpha1", "alpha2"):
            require(getattr(self, field) >= 0, field, getattr(self, field), "0 or more")
        for field in ("switch", "retention"):
            require(0 <= getattr(self, field) <= 1, field, getattr(self, field), "in 0 to 1")

    def decide(self, state: BranchState, step: Step, reading: Reading) -> Decision:
        """By the number of skips since the last recompute, for the second branch."""
        if state.peer is None:
            return Decision(Action.RECOMPUTE, "first branch")
        if in_retention(step, self.retention):
            return Decision(Action.RECOMPUTE, "retention")
        if state.skips + 1 >= self.every or state.memo is None:
            return Decision(Action.RECOMPUTE, "interval")
        return Decision(Action.WARP, "interval", operators=(Operator.FORECAST,))

    def approximate(
        self, state: BranchState, features: Features, reading: Reading, decision: Decision
    ) -> Tensor:
        """û."""
        assert state.latest is not None
        assert state.peer is not None
        total = state.latest.step.total
        late = total is not None and state.index >= self.switch * total
        weights = (1.0, 1 + self.alpha2) if late else (1 + self.alpha1, 1.0)
        gap: Tensor = state.memo
        if gap.ndim == 5 and weights != (1.0, 1.0):
            low = low_frequencies(gap)
            gap = (weights[0] * low + weights[1] * (gap - low)).to(gap.dtype)
        return state.peer.residual + gap

    def note(self, state: BranchState, step: Step, residual: Tensor) -> Any:
        """The gap of the two branches."""
        peer: Outcome | None = state.peer
        return state.memo if peer is None else residual - peer.residual


def low_frequencies(latent: Tensor) -> Tensor:
    """(batch, channels, frames, rows, columns) → its spatial frequencies up to a fifth of the shorter side."""
    import torch

    rows, columns = latent.shape[-2:]
    y, x = (torch.fft.fftfreq(n, 1 / n, device=latent.device) for n in (rows, columns))
    kept = y[:, None].square() + x[None].square() <= (min(rows, columns) // 5) ** 2
    spectrum = torch.fft.fft2(latent.float())
    low: Tensor = torch.fft.ifft2(spectrum * kept).real
    return low
