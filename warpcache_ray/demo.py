"""The whole way in one command: start the service, ask it for a video, save it, stop the service."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from warpcache_ray.errors import Unavailable, WarpCacheError

START_S = 180.0
POLL_S = 0.3
STOP_S = 60.0


@contextmanager
def service(config: Path, url: str) -> Iterator[httpx.Client]:
    """`serve run CONFIG` as a child process, until the block ends; gives a client once a replica is ready.

    Raises:
        Unavailable: it ended, or was not ready in time; the message has the end of its output.
    """
    command = [sys.executable, "-m", "ray.serve.scripts", "run", str(config)]
    _refuse_if_taken(url)
    with tempfile.TemporaryFile("w+") as log, httpx.Client(base_url=url, timeout=30) as client:
        child = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            _wait_until_ready(client, child, log)
            yield client
        finally:
            _stop(child)


def generate(
    client: httpx.Client, request: dict[str, Any], on_progress: Callable[[dict[str, Any]], None]
) -> tuple[dict[str, Any], bytes]:
    """Submits a job and follows it: the finished record and the video's bytes.

    Raises:
        WarpCacheError: the service refused the request, or the job failed.
    """
    answer = client.post("/generate", json=request)
    job = answer.json()
    if answer.is_error:
        raise WarpCacheError(job["error"]["message"], job["error"]["param"])
    while job["finished_at"] is None:
        time.sleep(POLL_S)
        job = client.get(f"/jobs/{job['id']}").json()
        on_progress(job)
    if job["error"]:
        raise WarpCacheError(job["error"]["message"])
    return job, client.get(job["video"]).content


def _refuse_if_taken(url: str) -> None:
    try:
        httpx.get(url, timeout=2)
    except httpx.TransportError:
        return
    raise Unavailable(
        f"{url} answers already; stop what runs there, or give another --url and --config"
    )


def _wait_until_ready(client: httpx.Client, child: subprocess.Popen[bytes], log: Any) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if child.poll() is not None:
            raise Unavailable(f"serve run ended with {child.returncode}:\n{_tail(log)}")
        try:
            if client.get("/health").is_success:
                return
        except httpx.TransportError:
            # The proxy doesn't listen yet.
            time.sleep(POLL_S)
        time.sleep(POLL_S)
    raise Unavailable(f"no replica was ready within {START_S:.0f} s:\n{_tail(log)}")


def _tail(log: Any) -> str:
    log.seek(0)
    text: str = log.read()
    return text[-2000:]


def _stop(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is not None:
        return
    os.killpg(child.pid, signal.SIGINT)
    try:
        child.wait(STOP_S)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
