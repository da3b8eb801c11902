"""Load on `/generate`: each user submits a job, follows it to its end and downloads the video.

    locust -f loadtest/locustfile.py --headless --users 2 --spawn-rate 1 --run-time 60s --host http://127.0.0.1:8000

Locust's own rows time the HTTP calls. The rows of type JOB time the jobs: `queue` until a replica took it, `run`
from there to the end, `e2e` both and the download.
"""

from __future__ import annotations

import os
import random
import time
from typing import Any

from locust import HttpUser, between, events, task

STEPS = int(os.environ.get("WARPCACHE_STEPS", "20"))
QUALITIES = ("high", "balanced", "fast")
PROMPTS = (
    "a red circle moving right fast over a blue background",
    "a yellow square moving left fast over a blue background, camera panning up",
    "a white star staying still over a purple background",
    "a green triangle moving up slow over an orange background, camera panning left",
)


class VideoUser(HttpUser):
    """A client with one job at a time."""

    wait_time = between(0.1, 1.0)

    @task
    def make_video(self) -> None:
        """Submits, polls, downloads."""
        began = time.time()
        body = {
            "prompt": random.choice(PROMPTS),
            "quality": random.choice(QUALITIES),
            "num_inference_steps": STEPS,
        }
        with self.client.post("/generate", json=body, catch_response=True) as answer:
            # A full queue is the service doing its duty; the user comes back later.
            if answer.status_code == 429:
                answer.success()
                time.sleep(float(answer.headers.get("retry-after", 1)))
                return
        if not answer.ok:
            return
        job = self._follow(answer.json()["id"])
        if job["status"] == "succeeded":
            self.client.get(job["video"], name="/jobs/{id}/video")
        self._report(job, began)

    def _follow(self, job_id: str) -> dict[str, Any]:
        while True:
            job: dict[str, Any] = self.client.get(f"/jobs/{job_id}", name="/jobs/{id}").json()
            if job["finished_at"] is not None:
                return job
            time.sleep(0.3)

    def _report(self, job: dict[str, Any], began: float) -> None:
        error = None if job["status"] == "succeeded" else RuntimeError(job["error"]["message"])
        started = job["started_at"] or job["finished_at"]
        spans = {
            "queue": started - job["created_at"],
            "run": job["finished_at"] - started,
            "e2e": time.time() - began,
        }
        for name, seconds in spans.items():
            events.request.fire(
                request_type="JOB",
                name=name,
                response_time=seconds * 1000,
                response_length=job["result"].get("bytes", 0),
                exception=error,
                context={},
            )
