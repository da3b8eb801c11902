"""How long the ranks may stay at one step before they count as hung."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any


@dataclass(slots=True)
class Pace:
    """Learns from the steps that it sees: a step may take `factor` times as long as the slowest one so far, always
    `floor_s`, and never longer than `limit_s`, which also holds where there is nothing to compare with (loading text,
    decoding)."""

    factor: float
    floor_s: float
    limit_s: float
    slowest: float = 0.0
    volume: int = 1

    def saw(self, seconds: float, volume: int) -> None:
        """A step of a video of so many pixels took so long."""
        if seconds >= self.expected(volume):
            self.slowest, self.volume = seconds, volume

    def expected(self, volume: int) -> float:
        """The slowest that a step of such a video should be: attention grows with the square of the tokens."""
        return self.slowest * max(1.0, volume / self.volume) ** 2

    def patience(self, volume: int, denoising: bool) -> float:
        """Seconds after which a step of such a video is a hang."""
        if not denoising or not self.slowest:
            return self.limit_s
        return min(self.limit_s, max(self.floor_s, self.factor * self.expected(volume)))


def volume_of(request: dict[str, Any]) -> int:
    """Pixels of the video that is asked for; what the request leaves open counts as 1."""
    return prod(request.get(name) or 1 for name in ("height", "width", "num_frames"))


@dataclass(slots=True)
class Watch:
    """One attempt's progress, as its reports tell it. Times are of a monotonic clock."""

    pace: Pace
    volume: int
    moved_at: float
    step: int = 0
    total: int = 0

    def told(self, step: int, total: int, now: float) -> None:
        """A report. Steps that were made between two reports share the time between them."""
        if step == self.step:
            return
        if self.step:
            # The first step's time holds the loading of the text and what is compiled at first use.
            self.pace.saw((now - self.moved_at) / (step - self.step), self.volume)
        self.step, self.total, self.moved_at = step, total, now

    def check(self, now: float) -> None:
        """The step at hand is in time.

        Raises:
            TimeoutError: it is over what it was allowed.
        """
        denoising = 0 < self.step < self.total
        allowed = self.pace.patience(self.volume, denoising)
        if now - self.moved_at > allowed:
            raise TimeoutError(f"step {self.step}: none other in {allowed:.1f} s")
