"""Those who have jobs made while something dies, and the account of what became of their jobs."""

from __future__ import annotations

import threading
import time
import uuid
from typing import Any

import httpx
from arrivals import Arrival
from audit import audit
from journey import Http, Outcome, travel
from requests.adapters import HTTPAdapter
from summary import count

AT_A_TIME = 64
PATIENCE_S = 300.0
POLL_S = 0.05
COUNTED = ("acknowledged", "succeeded", "failed", "cancelled", "unfinished", "lost", "twice")

Body = dict[str, Any]

EXACT: Body = {"prompt": "a red circle", "seed": 1, "policy": "never", "num_inference_steps": 100}
SHORT = EXACT | {"num_inference_steps": 10}


class Clients:
    """Each goes its way in a thread of its own, as those of the load test do: it sends what had no answer again, under
    its idempotency key."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.outcomes: list[Outcome] = []
        self._adapter = HTTPAdapter(pool_maxsize=AT_A_TIME)
        self._journeys: list[threading.Thread] = []

    def send(self, body: Body, cancel_after_s: float | None = None, listens: bool = True) -> str:
        """The id of a new job, whose client goes on following it."""
        outcome = Outcome(Arrival(0.0, body, None, cancel_after_s, listens))
        self.outcomes.append(outcome)
        journey = threading.Thread(
            target=travel, args=(self._http(outcome), outcome, time.monotonic()), daemon=True
        )
        journey.start()
        self._journeys.append(journey)
        while outcome.job_id is None:
            assert journey.is_alive(), outcome.refusal
            time.sleep(POLL_S)
        return outcome.job_id

    def mixed(self) -> str:
        """A long job at work, behind it one that waits and one whose client thinks again; the long one's id."""
        job = self.send(EXACT)
        self.send(SHORT, listens=False)
        self.send(SHORT, cancel_after_s=1.0)
        return job

    def insist(self, body: Body) -> str:
        """The id of a new job, asked for again at once until somebody takes it. Nobody follows that one."""
        key = {"Idempotency-Key": uuid.uuid4().hex}
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            try:
                answer = httpx.post(f"{self.url}/generate", json=body, headers=key, timeout=10)
            except httpx.TransportError:
                time.sleep(POLL_S)
                continue
            if answer.status_code == 200:
                return self.follow(str(answer.json()["id"]), body)
            time.sleep(POLL_S)
        raise TimeoutError(f"nobody took a job within {PATIENCE_S} s")

    def follow(self, job: str, body: Body) -> str:
        """Has a job in the account that was acknowledged to somebody else."""
        self.outcomes.append(Outcome(Arrival(0.0, body), job))
        return job

    def cancel(self, job: str) -> None:
        """Asks for a job's end."""
        httpx.delete(f"{self.url}/jobs/{job}", timeout=30).raise_for_status()

    def record(self, job: str) -> dict[str, Any]:
        """What a job's client saw at its end."""
        (found,) = [o.record for o in self.outcomes if o.job_id == job]
        assert found is not None, f"{job} didn't end"
        return found

    def account(self) -> dict[str, int]:
        """Waits for all journeys, asks the service for each job that it acknowledged, and counts."""
        until = time.monotonic() + PATIENCE_S
        for journey in self._journeys:
            journey.join(max(0.0, until - time.monotonic()))
        counted = count(self.outcomes, audit(self._http, self.outcomes, until), 0)
        return {name: counted[name] for name in COUNTED}

    def _http(self, _: Outcome) -> Http:
        return Http(self.url, self._adapter, lambda *_: None)
