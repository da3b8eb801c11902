"""MagCache (arXiv 2506.09045): skips while the magnitudes of residuals, known beforehand, foretell little error.

Γ = Π γ_i over the steps since the last recompute, with γ_t = mean(‖r_t‖ / ‖r_{t-1}‖) of calibration runs
(`tuning.fits.magnitude_ratios`); E = Σ|1 - Γ| over the same steps. Below δ, and at most K steps in a row, the latest
residual is added as it is. At site `output` the residual is the denoiser's output.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from warpcache_ray.core.policy import Policy, Reading, in_retention, require
from warpcache_ray.core.types import Action, BranchState, Decision, Site, Step


@dataclass(frozen=True, kw_only=True)
class MagCache(Policy):
    """`threshold` is δ, `max_skips` K; the first `retention` of the run is computed. `ratios`, one for each step,
    belong to a model, and are read at the nearest place in a run of another length; without any all are 1, so that K
    alone limits."""

    name: ClassVar[str] = "magcache"

    ratios: tuple[float, ...] = ()
    threshold: float = 0.12
    retention: float = 0.2
    site: Site = Site.BLOCKS
    max_skips: int | None = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        require(all(r > 0 for r in self.ratios), "ratios", self.ratios, "numbers above 0")
        require(self.threshold > 0, "threshold", self.threshold, "above 0")
        require(0 <= self.retention <= 1, "retention", self.retention, "in 0 to 1")
        require(self.site is not Site.LAYER, "site", self.site.value, "blocks or output")

    def decide(self, state: BranchState, step: Step, reading: Reading) -> Decision:
        """By the error foretold; nothing is measured."""
        if in_retention(step, self.retention):
            return Decision(Action.RECOMPUTE, "retention")
        assert state.latest is not None
        error = self._error(state.latest.step.index, step)
        action = Action.REUSE if error < self.threshold else Action.RECOMPUTE
        return Decision(action, "magnitude", error, self.threshold)

    def _error(self, computed: int, step: Step) -> float:
        gain, error = 1.0, 0.0
        for index in range(computed + 1, step.index + 1):
            gain *= self._ratio(index, step.total)
            error += abs(1 - gain)
        return error

    def _ratio(self, index: int, total: int | None) -> float:
        if not self.ratios:
            return 1.0
        last = len(self.ratios) - 1
        if total is not None and total > 1:
            index = round(index * last / (total - 1))
        return self.ratios[min(index, last)]
