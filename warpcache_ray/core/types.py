"""The words of the cache: step, decision, features, snapshot, branch state."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


class Action(StrEnum):
    """What a decision does with the cached site."""

    RECOMPUTE = "recompute"
    REUSE = "reuse"
    WARP = "warp"


class Site(StrEnum):
    """Where a policy intervenes: a whole denoiser call, the block stack after the probe, or each block by itself."""

    OUTPUT = "output"
    BLOCKS = "blocks"
    LAYER = "layer"


class Operator(StrEnum):
    """How a WARP approximates; statistics count each apart."""

    FORECAST = "forecast"
    BLEND = "blend"
    SPATIAL = "spatial"


class Grid(NamedTuple):
    """Token grid of a video, frames × rows × columns."""

    frames: int
    rows: int
    columns: int

    @property
    def tokens(self) -> int:
        """Their product."""
        return self.frames * self.rows * self.columns


class Where(NamedTuple):
    """Whose state: transformer's name in the pipeline, branch, and block where each has its own."""

    transformer: str
    branch: str
    layer: int | None = None


@dataclass(frozen=True, slots=True)
class Course:
    """The run that a step belongs to: noise levels of all its steps and the final one, guidance scale, the weight of
    each step's output in the final latent (None where the solver isn't linear), and the step at which a second
    transformer takes over."""

    sigmas: tuple[float, ...]
    guidance: float | None = None
    weights: tuple[float, ...] | None = None
    switch: int | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """One denoising iteration on one branch; `total`, `sigma` and `course` are None where the pipeline doesn't tell."""

    index: int
    total: int | None = None
    sigma: float | None = None
    branch: str = "cond"
    course: Course | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do at a site, and why. `drift` and `threshold` are None where none was measured."""

    action: Action
    reason: str
    drift: float | None = None
    threshold: float | None = None
    operators: tuple[Operator, ...] = ()

    @property
    def skips(self) -> bool:
        """True for REUSE and WARP."""
        return self.action is not Action.RECOMPUTE

    @property
    def kind(self) -> str:
        """It in a word: `recompute`, `reuse`, or how a WARP approximates (`forecast`, `blend+spatial`, ...)."""
        return "+".join(self.operators) or self.action.value


@dataclass(frozen=True, slots=True)
class Features:
    """What a policy sees before it decides: at site `blocks` the stack's input and the probe, both (batch, tokens,
    channels), where `tokens` may be this rank's share of the grid's (all of them, where a SPATIAL decision is carried
    out); at site `output` the noisy latent, as both."""

    input: Tensor
    probe: Tensor
    grid: Grid

    @property
    def probe_residual(self) -> Tensor:
        """What the probe blocks added to the input."""
        return self.probe - self.input


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a policy keeps of one recompute: always the residual (stack output - input, or the denoiser's output), the
    rest as it needs."""

    step: Step
    residual: Tensor
    input: Tensor | None = None
    probe: Tensor | None = None
    probe_residual: Tensor | None = None
    delivered: Tensor | None = None
    """What the solver was given, where that isn't the residual."""
    peer: Tensor | None = None
    """What the branch called before this one gave in the same step."""
    beside: tuple[Tensor | None, ...] = ()
    """What changed beside the video: at site `blocks` the change of each further stream (text, audio, history), at site
    `output` what else the denoiser gave."""

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """All that it keeps."""
        return (
            self.residual,
            self.input,
            self.probe,
            self.probe_residual,
            self.delivered,
            self.peer,
            *self.beside,
        )

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return _bytes_of(self.tensors)


@dataclass(frozen=True, slots=True)
class Trail:
    """What a branch takes from step to step, skipped ones too: the drift that each sample has gathered since the last
    recompute, and what the next step compares itself with."""

    drift: tuple[float, ...] = ()
    reference: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a denoiser call at site `output` gave, computed or approximated."""

    step: Step
    decision: Decision
    residual: Tensor


@dataclass(frozen=True, slots=True)
class BranchState:
    """What one branch of one transformer remembers: its last recomputes (up to three) and the skips since.

    `peer` is what the branch called before this one gave in the same step, `memo` the policy's own notes, which all
    branches share; both are put in when the state is looked up.
    """

    latest: Snapshot | None = None
    previous: Snapshot | None = None
    skips: int = 0
    older: Snapshot | None = None
    trail: Trail | None = None
    peer: Outcome | None = None
    memo: Any = None

    @property
    def snapshots(self) -> tuple[Snapshot, ...]:
        """The last recomputes, the latest first."""
        return tuple(s for s in (self.latest, self.previous, self.older) if s is not None)

    @property
    def index(self) -> int:
        """Index of the step at hand, counted on from the latest recompute."""
        assert self.latest is not None
        return self.latest.step.index + self.skips + 1

    def after_skip(self, trail: Trail | None = None) -> BranchState:
        """The state after one more skip."""
        return replace(self, skips=self.skips + 1, trail=trail)

    def after_recompute(
        self, snapshot: Snapshot, window: int, trail: Trail | None = None
    ) -> BranchState:
        """The state after a recompute, keeping at most `window` snapshots."""
        latest, previous, older = ((snapshot, self.latest, self.previous)[:window] + (None,) * 3)[
            :3
        ]
        return BranchState(latest, previous, older=older, trail=trail)

    @property
    def nbytes(self) -> int:
        """Bytes held by snapshots and trail; a tensor that stands in two places counts once."""
        kept = [t for snapshot in self.snapshots for t in snapshot.tensors]
        return _bytes_of([*kept, self.trail.reference if self.trail else None])


def _bytes_of(tensors: Iterable[Tensor | None]) -> int:
    return sum({t.data_ptr(): t.nbytes for t in tensors if t is not None}.values())
