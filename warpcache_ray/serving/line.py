"""The waiting jobs in their order, as `admission.order` has it, computed anew only when that may have changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from warpcache_ray.serving import admission
from warpcache_ray.serving.admission import Rates, Turn
from warpcache_ray.serving.jobs import Jobs


class Line:
    """Remembers the last answer: many who wait ask often, and the order takes all records."""

    def __init__(self) -> None:
        self._of: Any = None
        self._turns: list[Turn] = []

    def turns(self, jobs: Jobs, rates: Rates, weights: Mapping[str, float]) -> list[Turn]:
        """Who is next, and next after that."""
        of = (jobs.revision, rates.heard, sorted(weights.items()))
        if of != self._of:
            self._turns = list(admission.order(jobs, rates.cost, weights))
            self._of = of
        return self._turns
