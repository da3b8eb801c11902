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
        alike = [n for n, known in enumerate(self._texts) if _same(known, text)]
        free = [n for n in alike if n not in self._called]
        if alike and not guided:
            free = alike
        if not free:
            self._texts.append(text)
        number = free[0] if free else len(self._texts) - 1
        self._called.add(number)
        return NAMES[number] if number < len(NAMES) else f"call_{number}"


def _same(one: Any, other: Any) -> bool:
    if one is other:
        return True
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        # On a GPU this waits for the device; pipelines that give the same tensor at each step don't come here.
        return one.shape == other.shape and torch.equal(one, other)
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    return False
