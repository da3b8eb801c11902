"""From a few real runs to what all requests can expect: how the closed form's errors come out as quality."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.optimize import brentq
from scipy.stats import t

Metric = Literal["psnr", "ssim"]

SSIM_POWER = 0.8
"""1 - SSIM falls as this power of the square error, on both demo models."""
PRIOR_LEVEL: Mapping[Metric, float] = {"psnr": 19.0, "ssim": 6.0}
PRIOR_SPREAD = 3.5
"""What to expect of a model that nobody has run: level and standard deviation over requests (dB), as the demo models
have them, those that tip over apart."""
PRIOR_WEIGHT = 8
"""Requests that the prior spread counts for: a few runs alone tell little of it."""
TIPPING = 0.06
"""The share of requests that tip over: an early error leads them to another video. Twice as many as on the demo models
(19 of 590 runs), for how many they are is what a few runs can't show: only a certificate does."""
DEPTH = 15.0
"""How many dB such a request has less; on the demo models 9 to 30."""
LEAST_SPREAD = 1.0
"""The closed form isn't more exact than that."""
TINY = 1e-10
"""No error is less: 100 dB."""


def decibels(metric: Metric, quality: float) -> float:
    """Quality on a scale where a square error ten times smaller is 10 dB more: PSNR itself, -12.5 log10(1 - SSIM)."""
    return quality if metric == "psnr" else -10 / SSIM_POWER * math.log10(max(1 - quality, TINY))


def quality(metric: Metric, db: float) -> float:
    """The inverse of `decibels`."""
    return db if metric == "psnr" else 1 - 10 ** (-db * SSIM_POWER / 10)


def predicted(error: float) -> float:
    """An expected square error as dB."""
    return -10 * math.log10(max(error, TINY))


@dataclass(frozen=True, slots=True)
class Outlook:
    """The levels of real runs, of so many different `requests`: how many dB of quality each had beyond the closed
    form's.

    They are taken for normal, their variance known beforehand as well as from `PRIOR_WEIGHT` requests; so what the next
    request will have follows Student's t, the uncertainty of the mean included; if it tips over, which `TIPPING` of
    them do, it has `DEPTH` less. `share` and `bound` say that.
    """

    metric: Metric
    levels: tuple[float, ...] = ()
    requests: int = 0

    def share(self, db: float, target: float) -> float:
        """The share of requests expected to reach `target` with a policy that is predicted to have `db`."""
        above = self._mean + db - target
        calm, tipped = t.cdf([above / self._spread, (above - DEPTH) / self._spread], self._freedom)
        return float((1 - TIPPING) * calm + TIPPING * tipped)

    def bound(self, db: float, share: float) -> float:
        """What this share of requests is expected to reach."""
        calm = self._mean + db - float(t.ppf(share, self._freedom)) * self._spread
        # Those that tip over only take away, and no request has less than DEPTH less.
        return float(brentq(lambda q: self.share(db, q) - share, calm - DEPTH, calm))

    @property
    def _freedom(self) -> int:
        return PRIOR_WEIGHT + max(0, self.requests - 1)

    @property
    def _mean(self) -> float:
        return float(np.mean(self.levels)) if self.levels else PRIOR_LEVEL[self.metric]

    @property
    def _spread(self) -> float:
        known = max(0, self.requests - 1)
        observed = float(np.var(self.levels, ddof=1)) if known else 0.0
        variance = (PRIOR_WEIGHT * PRIOR_SPREAD**2 + known * observed) / self._freedom
        return max(math.sqrt(variance), LEAST_SPREAD) * math.sqrt(1 + 1 / max(1, self.requests))


def fewest_calls(
    outlook: Outlook,
    error: Callable[[int], float],
    calls: Sequence[int],
    target: float,
    share: float,
) -> int | None:
    """The fewest of `calls` (rising) with which this share is expected to reach the target."""
    fine = (c for c in calls if outlook.share(predicted(error(c)), target) >= share)
    return next(fine, None)
