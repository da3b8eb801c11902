"""After the load: the service is asked what became of each job that it acknowledged."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from journey import TERMINAL, GaveUp, Http, Outcome
from requests import Response
from sseclient import SSEClient

log = logging.getLogger(__name__)

PAUSE_S = 0.5
PUBLISHED = ("status", "fence", "finished_at", "result", "error")
"""What of a record may never change once the job has ended."""


class Verdict(StrEnum):
    """What became of an acknowledged job."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    UNFINISHED = "unfinished"
    """Not at its end when the audit's time was over, or nothing was said of it (to this client)."""
    LOST = "lost"
    """The service doesn't know it."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One acknowledged job. `ends` are the kinds of its events that end a job, of which there must be one."""

    outcome: Outcome
    verdict: Verdict
    record: dict[str, Any] | None = None
    ends: tuple[str, ...] = ()

    @property
    def twice(self) -> bool:
        """More than one end was told, or another than the client had seen."""
        seen, now = self.outcome.record, self.record
        changed = seen is not None and now is not None and any(seen[f] != now[f] for f in PUBLISHED)
        return len(self.ends) > 1 or changed

    @property
    def without_video(self) -> bool:
        """A success whose client got no video."""
        return self.verdict is Verdict.SUCCEEDED and self.outcome.video_bytes == 0


def audit(
    http_of: Callable[[Outcome], Http], outcomes: Iterable[Outcome], until: float
) -> list[Finding]:
    """A finding for each acknowledged job, asked for by its own client; those at work are waited for until this time of
    the monotonic clock."""
    asked = [outcome for outcome in outcomes if outcome.job_id is not None]
    findings: list[Finding] = []
    gone = False
    for outcome in asked:
        try:
            found = None if gone else _finding(http_of(outcome), outcome, until)
        except GaveUp as error:
            log.warning("%s", error)
            # Where one client had asked too often the others are heard; else nobody is there to tell of theirs.
            found, gone = None, not error.busy
        findings.append(found or Finding(outcome, Verdict.UNFINISHED))
    return findings


def _finding(http: Http, outcome: Outcome, until: float) -> Finding:
    path = f"/jobs/{outcome.job_id}"
    while True:
        answer = http.send("GET", path, "/jobs/{id}")
        if answer.status_code != 200:
            return Finding(outcome, _unknown(answer, path))
        record: dict[str, Any] = answer.json()
        if record["status"] in TERMINAL:
            told = http.send("GET", f"{path}/events", "/jobs/{id}/events")
            kinds = [event.event for event in SSEClient(told).events()]
            ends = tuple(kind for kind in kinds if kind in TERMINAL)
            return Finding(outcome, Verdict(record["status"]), record, ends)
        if time.monotonic() > until:
            return Finding(outcome, Verdict.UNFINISHED, record)
        time.sleep(PAUSE_S)


def _unknown(answer: Response, path: str) -> Verdict:
    code = answer.json()["error"]["code"]
    if (answer.status_code, code) == (404, "not_found"):
        return Verdict.LOST
    log.warning("GET %s: %s %s", path, answer.status_code, code)
    return Verdict.UNFINISHED
