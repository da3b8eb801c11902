"""WorldCache (arXiv 2603.22286): motion-adaptive threshold, salient drift, optimal extrapolation, phase schedule.

Where the paper taken literally fails, this follows what it argues for instead:

- drift (eq. 1, 5) and velocity (eq. 2) compare with the last *recompute*, not with the step before: steps differ so
  little from their neighbours that the literal rule skips nearly all of them. The velocity is scaled to the paper's
  gap of two steps.
- eq. 5 is divided by the reference's magnitude, as eq. 1 is; otherwise no threshold fits two models.
- saliency (eq. 4) is the channel variance of each token, not of a mean over frames: a shard of the tokens can
  measure its own, and moving objects keep their place in time. It is taken of the kept probe, the drift's reference.
- eq. 8 mixes probe and deep residuals; the gain is fitted on probe residuals alone and applied to deep ones.
- the spatial warp estimates flow from the *kept* input of a recompute to the current one, frame by frame on the
  (frames, rows, columns) grid, and warps the residuals before the extrapolation; off by default, since a scene
  hardly moves between two denoising steps: on the image-to-video demo model it loses 9 to 15 dB at the same calls.
- runs of skips are capped, and a batch recomputes if any of its samples must.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from warpcache_ray.core import blend
from warpcache_ray.core.drift import furthest, l1_sums, ratio, token_l1
from warpcache_ray.core.policy import Measured, Policy, Reading, require
from warpcache_ray.core.saliency import token_saliency, weighted_change
from warpcache_ray.core.thresholds import motion_adaptive, phase_adaptive
from warpcache_ray.core.types import (
    Action,
    BranchState,
    Decision,
    Features,
    Operator,
    Snapshot,
    Step,
)

if TYPE_CHECKING:
    from torch import Tensor


class _Sums(NamedTuple):
    """What `measure` sums: change of the probe (plain, times saliency) and its magnitude; change of the input and its
    magnitude; the two sums of the gain."""

    change: float
    weighted: float
    magnitude: float
    motion: float
    extent: float
    inner: float = 0.0
    square: float = 0.0


@dataclass(frozen=True, kw_only=True)
class WorldCache(Policy):
    """Defaults are the paper's (τ0, α, β_s, γ_max, s_flow, β_d). `cfc`, `swd`, `osi`, `ats` and `warp` switch its
    modules: without `cfc` and `ats` the threshold is τ0, without `swd` all tokens weigh the same, without `osi` a
    skip reuses the latest residual as it is."""

    name: ClassVar[str] = "worldcache"
    window: ClassVar[int] = 2

    threshold: float = 0.08
    motion_scale: float = 2.0
    saliency_scale: float = 0.12
    max_gain: float = 2.0
    phase_scale: float = 4.0
    flow_scale: float = 0.5
    warp_from: int = 5
    cfc: bool = True
    swd: bool = True
    osi: bool = True
    ats: bool = True
    warp: bool = False
    probe_depth: int = 1
    warmup: int = 3
    max_skips: int | None = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.probe_depth >= 1, "probe_depth", self.probe_depth, "1 or more")
        for field in ("threshold", "max_gain", "flow_scale"):
            require(getattr(self, field) > 0, field, getattr(self, field), "above 0")
        for field in ("motion_scale", "saliency_scale", "phase_scale", "warp_from"):
            require(getattr(self, field) >= 0, field, getattr(self, field), "0 or more")

    def measure(self, state: BranchState, features: Features) -> Measured:
        """Sums of drift (plain and weighted by saliency), motion and gain; extremes of the saliency."""
        latest, previous = state.latest, state.previous
        assert latest is not None
        assert latest.probe is not None
        assert latest.input is not None
        change = token_l1(features.probe, latest.probe)
        saliency = token_saliency(latest.probe)
        columns = [
            change.sum(1),
            (change * saliency).sum(1),
            latest.probe.abs().float().sum((1, 2)),
            *l1_sums(features.input, latest.input),
        ]
        if self.osi and previous is not None:
            pair = (_probe_residual(latest), _probe_residual(previous))
            columns += blend.gain_sums(features.probe_residual, *pair)
        return Measured(tuple(columns), (saliency.amax(1), -saliency.amin(1)))

    def decide(self, state: BranchState, step: Step, reading: Reading) -> Decision:
        """SWD drift against the CFC and ATS threshold (eq. 6), for the sample nearest to (or furthest above) it."""
        assert state.latest is not None
        gap = max(1, step.index - state.latest.step.index)
        pairs = [
            (self._drift(_Sums(*row), extremes), self._threshold(step, gap, _Sums(*row)))
            for row, extremes in zip(reading.sums, reading.extremes, strict=True)
        ]
        nearness = [drift / threshold for drift, threshold in pairs]
        drift, threshold = pairs[nearness.index(furthest(nearness))]
        if not all(near < 1 for near in nearness):
            return Decision(Action.RECOMPUTE, "drift", drift, threshold)
        operators = self._operators(state, step)
        action = Action.WARP if operators else Action.REUSE
        return Decision(action, "drift", drift, threshold, operators)

    def approximate(
        self, state: BranchState, features: Features, reading: Reading, decision: Decision
    ) -> Tensor:
        """The residual of eq. 10, on spatially corrected residuals where the decision says so."""
        latest, previous = state.latest, state.previous
        assert latest is not None
        spatial = Operator.SPATIAL in decision.operators
        newer = self._aligned(latest, features) if spatial else latest.residual
        if Operator.BLEND not in decision.operators:
            return newer
        assert previous is not None
        older = self._aligned(previous, features) if spatial else previous.residual
        sums = [_Sums(*row) for row in reading.sums]
        gains = [blend.gain(s.inner, s.square, self.max_gain) for s in sums]
        return blend.extrapolate(newer, older, newer.new_tensor(gains))

    def remember(self, step: Step, features: Features, residual: Tensor) -> Snapshot:
        """Input, probe and residual."""
        return Snapshot(step, residual, features.input, features.probe)

    def _drift(self, sums: _Sums, extremes: tuple[float, ...]) -> float:
        change, (high, negative_low) = sums.change, extremes
        if self.swd:
            change = weighted_change(
                change, sums.weighted, -negative_low, high, self.saliency_scale
            )
        return ratio(change, sums.magnitude)

    def _threshold(self, step: Step, gap: int, sums: _Sums) -> float:
        threshold = self.threshold
        if self.cfc:
            velocity = ratio(sums.motion, sums.extent) * 2 / gap
            threshold = motion_adaptive(threshold, self.motion_scale, velocity)
        if self.ats and step.total:
            threshold = phase_adaptive(threshold, self.phase_scale, step.index / step.total)
        return threshold

    def _operators(self, state: BranchState, step: Step) -> tuple[Operator, ...]:
        blended = (Operator.BLEND,) if self.osi and state.previous is not None else ()
        moved = (Operator.SPATIAL,) if self.warp and step.index >= self.warp_from else ()
        return blended + moved

    def _aligned(self, snapshot: Snapshot, features: Features) -> Tensor:
        # Only here, so that naming a policy doesn't load torch.
        from warpcache_ray.core.warp import estimate_flow, warp_tokens

        assert snapshot.input is not None
        flow = estimate_flow(snapshot.input, features.input, features.grid, self.flow_scale)
        return warp_tokens(snapshot.residual, flow, features.grid)


def _probe_residual(snapshot: Snapshot) -> Tensor:
    assert snapshot.probe is not None
    assert snapshot.input is not None
    return snapshot.probe - snapshot.input
