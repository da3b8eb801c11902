"""TaylorSeer (arXiv 2503.06923): a Taylor series in the step index, its derivatives from finite differences.

F(t + k) = Σ_i Δⁱ kⁱ / i!, with Δ⁰ = F and Δⁱ = (Δⁱ⁻¹ - Δⁱ⁻¹ of the recompute before) / gap between the two.

- the paper forecasts every attention and MLP by itself; this the denoiser's output, the stack's residual, or each
  block's, as `site` says.
- the second order sets in with the third recompute; the paper's code waits for a fourth.
- the last step is computed (`cooldown`).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar

from warpcache_ray.core.policy import Policy, Reading, require
from warpcache_ray.core.types import Action, BranchState, Decision, Features, Operator, Site, Step

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class TaylorSeer(Policy):
    """Computes every `interval`-th step after `warmup` (first_enhance) and forecasts between; `order` 0 is reuse.
    Defaults are the paper's for HunyuanVideo."""

    name: ClassVar[str] = "taylorseer"

    order: int = 1
    interval: int = 6
    site: Site = Site.OUTPUT
    warmup: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.order in (0, 1, 2), "order", self.order, "0, 1 or 2")
        require(self.interval >= 1, "interval", self.interval, "1 or more")

    @property
    def window(self) -> int:
        """One more than the order."""
        return self.order + 1

    def decide(self, state: BranchState, step: Step, reading: Reading) -> Decision:
        """By the number of skips since the last recompute."""
        if state.skips + 1 >= self.interval:
            return Decision(Action.RECOMPUTE, "interval")
        if len(state.snapshots) > 1:
            return Decision(Action.WARP, "interval", operators=(Operator.FORECAST,))
        return Decision(Action.REUSE, "interval")

    def approximate(
        self, state: BranchState, features: Features, reading: Reading, decision: Decision
    ) -> Tensor:
        """The series, of as high an order as there are recomputes for."""
        snapshots = state.snapshots
        latest = snapshots[0]
        ahead = state.index - latest.step.index
        slopes = [
            (newer.residual - older.residual) / (newer.step.index - older.step.index)
            for newer, older in pairwise(snapshots)
        ]
        forecast = latest.residual
        if slopes:
            forecast = forecast + slopes[0] * ahead
        if len(slopes) > 1:
            gap = latest.step.index - snapshots[1].step.index
            forecast = forecast + (slopes[0] - slopes[1]) / gap * (ahead**2 / 2)
        return forecast
