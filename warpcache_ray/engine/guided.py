"""Cond and uncond of a step computed side by side, each on one half of the ranks.

A pipeline calls cond first, and looks at what it got only once it has called uncond too. So cond is answered with a
tensor still to be filled; when uncond is called, each half computes its branch, and the outputs are exchanged.

Who decides: at sites `blocks` and `layer` a branch's state lies with its half, which decides for it; the other is told.
At site `output`, where a branch may depend on the other, all ranks hold both and decide on both, in the pipeline's
order. If cond is recomputed, uncond is computed beside it, before it is known whether it will be used: that costs no
time. If only uncond is, both halves compute it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from warpcache_ray.core.types import Site
from warpcache_ray.engine.call import Call
from warpcache_ray.engine.output import OutputForm
from warpcache_ray.engine.ranks import Halves


@dataclass(frozen=True, slots=True)
class Asked:
    """A denoiser call as the pipeline made it; `compute` runs the model."""

    call: Call
    form: OutputForm
    compute: Callable[[], Any]

    @property
    def latent(self) -> Tensor:
        """What it denoises."""
        return self.form.noisy


Answer = Callable[[Asked, Callable[[], Any]], Any]
"""What the pipeline is given for a call whose model run is as told."""


class SideBySide:
    """Answers the calls of guided runs, two at a time."""

    def __init__(self, halves: Halves, answer: Answer) -> None:
        self.halves = halves
        self.answer = answer
        self._waiting: tuple[Asked, Tensor] | None = None

    def called(self, asked: Asked) -> Any:
        """The branch's output; that of cond is filled in at the call of uncond."""
        if asked.call.step.branch == "cond":
            self._waiting = asked, torch.empty_like(asked.latent)
            return asked.form.write(self._waiting[1])
        assert self._waiting is not None
        (cond, output), self._waiting = self._waiting, None
        pair = _Pair(self.halves, cond, asked)
        both = self._decided_by_all if asked.call.policy.site is Site.OUTPUT else self._by_halves
        first, second = both(pair)
        output.copy_(first[0])
        return second

    def _decided_by_all(self, pair: _Pair) -> tuple[Any, Any]:
        first = self.answer(pair.cond, pair.compute_cond)
        return first, self.answer(pair.uncond, pair.compute_uncond)

    def _by_halves(self, pair: _Pair) -> tuple[Any, Any]:
        records = pair.cond.call.session.stats.records
        before = len(records)
        both = pair.compute_cond(), pair.compute_uncond()
        cond, uncond = self.halves.tell(records[before:])
        records[before:] = [*cond, *uncond]
        return both


class _Pair:
    """The two calls of a step; the first that is computed brings the other's output with it."""

    def __init__(self, halves: Halves, cond: Asked, uncond: Asked) -> None:
        self.halves, self.cond, self.uncond = halves, cond, uncond
        self._outputs: tuple[Tensor, Tensor] | None = None

    def compute_cond(self) -> Any:
        """Cond's output, on all ranks."""
        mine = self.cond if self.halves.branch == "cond" else self.uncond
        self._outputs = self.halves.exchange(mine.compute()[0])
        return self.cond.form.write(self._outputs[0])

    def compute_uncond(self) -> Any:
        """Uncond's output, on all ranks."""
        if self._outputs is None:
            self._outputs = self.halves.exchange(self.uncond.compute()[0])
        return self.uncond.form.write(self._outputs[1])
