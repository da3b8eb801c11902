"""Which branch a denoiser call is of, where the pipeline doesn't say: told by the text that the call is given."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

NAMES = ("cond", "uncond")
"""Of the texts of a run in the order of their first calls: pipelines call cond first."""


class Branches:
    """The texts of one run so far. Two calls of a step may have equal ones (an empty prompt), so where `guided` says
    that a step has several calls the order within the step decides between these."""

    def __init__(self) -> None:
        self._texts: list[Any] = []
        self._index = -1
        self._called: set[int] = set()

    def of(self, index: int, text: Any, guided: bool) -> str:
        """The branch of a call at step `index` with this text."""
        if index != self._index:
            self._index, self._called = index, set()
        # Where it is the same tensor at each step, values needn't be looked at: on a GPU that waits for the device.
        alike = [n for n, known in enumerate(self._texts) if _identical(known, text)]
        alike = alike or [n for n, known in enumerate(self._texts) if _equal(known, text)]
        free = [n for n in alike if n not in self._called]
        if alike and not guided:
            free = alike
        if not free:
            self._texts.append(text)
        number = free[0] if free else len(self._texts) - 1
        self._called.add(number)
        return NAMES[number] if number < len(NAMES) else f"call_{number}"


def _identical(one: Any, other: Any) -> bool:
    if isinstance(one, tuple) and isinstance(other, tuple) and len(one) == len(other):
        return all(map(_identical, one, other))
    return one is other


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and torch.equal(one, other)
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(map(_equal, one, other))
    return one is other
