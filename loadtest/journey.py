"""A client's way: submit, cancel perhaps, follow by events or by polling, download."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from arrivals import Arrival
from requests import RequestException, Response, Session
from requests.adapters import HTTPAdapter
from sseclient import SSEClient

CONNECT_S, READ_S = 5.0, 30.0
"""The service sends a heartbeat each ten seconds."""
PATIENCE_S = 120.0
"""How long a client tries to have an answer."""
PAUSE_S = 0.5
POLL_S = 0.5
BUSY = 429
UNANSWERED = "unanswered"
TERMINAL = frozenset({"succeeded", "failed", "cancelled"})

Report = Callable[[str, str, float, int, Exception | None], None]
"""Hears of each request and each stage of a job: kind, name, seconds, bytes and what went wrong."""


class GaveUp(Exception):
    """No answer within the client's patience; `busy`, if the service was there and had too much of this client."""

    def __init__(self, message: str, busy: bool) -> None:
        super().__init__(message)
        self.busy = busy


class Http:
    """Requests to the service, sent again when the connection breaks, when nobody can answer (5xx), and later when it
    was asked too often (429), unless that refuses a job."""

    def __init__(
        self,
        url: str,
        adapter: HTTPAdapter,
        report: Report,
        key: str | None = None,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._url = url.rstrip("/")
        self._session = Session()
        self._session.trust_env = False
        self._session.mount("http://", adapter)
        self._session.mount("https://", adapter)
        if key is not None:
            self._session.headers["x-api-key"] = key
        self._report = report
        self._patience_s = patience_s
        self.resent = 0

    def send(self, method: str, path: str, name: str, **options: Any) -> Response:
        """The service's own answer; `name` stands for the path in statistics.

        Raises:
            GaveUp: there was none in all this time.
        """
        until = time.monotonic() + self._patience_s
        while True:
            began = time.monotonic()
            answer, problem = self._try(method, path, options)
            size = 0 if answer is None or options.get("stream") else len(answer.content)
            self._report(method, name, time.monotonic() - began, size, problem)
            if answer is not None and problem is None:
                return answer
            if time.monotonic() > until:
                busy = answer is not None and answer.status_code == BUSY
                raise GaveUp(f"{method} {path}: {problem}", busy)
            self.resent += 1
            time.sleep(_pause_s(answer))

    def events(self, job_id: str) -> Iterator[str]:
        """The kinds of a job's events as they come, to the end; a broken stream goes on after its last event.

        Raises:
            GaveUp: the service couldn't be reached.
        """
        last: dict[str, str] = {}
        while True:
            answer = self.send(
                "GET", f"/jobs/{job_id}/events", "/jobs/{id}/events", stream=True, headers=last
            )
            try:
                if answer.status_code != 200:
                    # 204: there is no more; 404: there is no such job.
                    return
                for event in SSEClient(answer).events():
                    last = {"Last-Event-ID": event.id}
                    yield event.event
                    if event.event in TERMINAL:
                        return
            except RequestException:
                self.resent += 1
            finally:
                answer.close()
            time.sleep(PAUSE_S)

    def _try(
        self, method: str, path: str, options: dict[str, Any]
    ) -> tuple[Response | None, Exception | None]:
        try:
            answer = self._session.request(
                method, self._url + path, timeout=(CONNECT_S, READ_S), **options
            )
        except RequestException as error:
            return None, error
        # A proxy that doesn't know the service yet says 404 too, but not in the service's JSON.
        typed = answer.headers.get("content-type", "").startswith("application/json")
        # Too much asked of a job that is there is no answer; of a new one it is a refusal.
        final = answer.status_code < 500 and (answer.status_code != BUSY or method == "POST")
        if answer.ok or (final and typed):
            return answer, None
        return answer, RuntimeError(f"{answer.status_code}: {answer.text[:200]}")


@dataclass(slots=True)
class Outcome:
    """What became of an arrival, as its client saw it. Written while the journey goes on, so that one that is cut off
    leaves what it knew."""

    arrival: Arrival
    job_id: str | None = None
    """Known once the service has acknowledged the job."""
    refusal: str | None = None
    """Why there is no job: the service's code, or that nobody answered."""
    retry_after_s: float | None = None
    record: dict[str, Any] | None = None
    """The job's at its end."""
    video_bytes: int = 0
    e2e_s: float | None = None
    """From the time at which the request was due to the video's last byte, or to the end of a job without one."""
    cancel_s: float | None = None
    """From the wish to the end of a job that was cancelled."""
    resent: int = 0

    @property
    def queue_s(self) -> float | None:
        """From submission to the first attempt, by the service's clock."""
        if self.record is None or self.record["started_at"] is None:
            return None
        return float(self.record["started_at"] - self.record["created_at"])

    @property
    def run_s(self) -> float | None:
        """From the first attempt to the end, by the service's clock."""
        if self.record is None or self.record["started_at"] is None:
            return None
        return float(self.record["finished_at"] - self.record["started_at"])


def travel(http: Http, outcome: Outcome, due: float) -> None:
    """Goes all the way of `outcome.arrival`, which was due at this time of the monotonic clock."""
    try:
        # A client that gave up leaves what it knows in the outcome.
        with suppress(GaveUp):
            _travel(http, outcome, due)
    finally:
        outcome.resent = http.resent
        if outcome.job_id is None and outcome.refusal is None:
            outcome.refusal = UNANSWERED


def _pause_s(answer: Response | None) -> float:
    if answer is None or answer.status_code != BUSY:
        return PAUSE_S
    return float(answer.headers.get("retry-after", PAUSE_S))


def _travel(http: Http, outcome: Outcome, due: float) -> None:
    # The key makes all tries one request, also those whose answer was lost.
    key = {"Idempotency-Key": uuid.uuid4().hex}
    answer = http.send("POST", "/generate", "/generate", json=outcome.arrival.body, headers=key)
    if answer.status_code != 200:
        outcome.refusal = answer.json()["error"]["code"]
        if "retry-after" in answer.headers:
            outcome.retry_after_s = float(answer.headers["retry-after"])
        return
    outcome.job_id = str(answer.json()["id"])
    wished = _cancel(http, outcome)
    record = _end(http, outcome.job_id, outcome.arrival.listens or wished is not None)
    if record is None:
        return
    ended = time.monotonic()
    outcome.record = record
    if record["status"] == "cancelled" and wished is not None:
        outcome.cancel_s = ended - wished
    if record["status"] == "succeeded":
        video = http.send("GET", f"/jobs/{outcome.job_id}/video", "/jobs/{id}/video")
        outcome.video_bytes = len(video.content) if video.status_code == 200 else 0
        ended = time.monotonic()
    outcome.e2e_s = ended - due


def _cancel(http: Http, outcome: Outcome) -> float | None:
    if outcome.arrival.cancel_after_s is None:
        return None
    time.sleep(outcome.arrival.cancel_after_s)
    wished = time.monotonic()
    http.send("DELETE", f"/jobs/{outcome.job_id}", "/jobs/{id}")
    return wished


def _end(http: Http, job_id: str, listens: bool) -> dict[str, Any] | None:
    """The record of a job that has ended; None if the service doesn't know it (any more)."""
    while True:
        if listens:
            for _ in http.events(job_id):
                pass
        answer = http.send("GET", f"/jobs/{job_id}", "/jobs/{id}")
        if answer.status_code != 200:
            return None
        record: dict[str, Any] = answer.json()
        if record["status"] in TERMINAL:
            return record
        time.sleep(POLL_S)
