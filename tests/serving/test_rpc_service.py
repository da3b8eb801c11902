"""gRPC through a real Ray Serve: `serve run` of a file that asks for it, and the example's client."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import yaml
from google.protobuf.struct_pb2 import Value

from warpcache_ray.access_config import digest
from warpcache_ray.demo import service
from warpcache_ray.rpc.videos_pb2 import FollowRequest, GenerateRequest, JobId
from warpcache_ray.rpc.videos_pb2_grpc import VideosStub
from warpcache_ray.video import read_video

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
KEY = (("x-api-key", "a key"),)
LONG = {"num_inference_steps": 100, "policy": Value(string_value="never")}
SOON = 60.0


@pytest.fixture
def config(tmp_path: Path, free_port: int, grpc_port: int) -> Path:
    """The demo's file with what the README adds to it, on ports of this test's own."""
    document = yaml.safe_load((ROOT / "configs" / "toyworld.yaml").read_text())
    block = re.search(r"```yaml\n(grpc_options:\n.*?)```", README, re.DOTALL)
    assert block
    document |= yaml.safe_load(block.group(1))
    document["grpc_options"]["port"] = grpc_port
    document["http_options"]["port"] = free_port
    document["applications"][0]["args"]["results"] = str(tmp_path / "results")
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(document))
    return path


@pytest.fixture
def http(config: Path, free_port: int) -> Iterator[httpx.Client]:
    """A client of the service, which runs as long as the test, with one key."""
    document = json.loads(config.read_text())
    keys = [{"name": "alice", "sha256": digest("a key")}]
    document["applications"][0]["args"]["access"] = {"keys": keys}
    config.write_text(json.dumps(document))
    with service(config, f"http://127.0.0.1:{free_port}") as client:
        client.headers.update(dict(KEY))
        yield client


def example(port: int, out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """The example, run as its user would."""
    module = "warpcache_ray.rpc.client"
    command = [sys.executable, "-m", module, "a red circle", "--target", f"127.0.0.1:{port}"]
    return subprocess.run(
        [*command, "--out", out, *options],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def until(http: httpx.Client, job_id: str, wanted: Callable[[dict[str, Any]], bool]) -> None:
    """A job's record is as wanted."""
    deadline = time.monotonic() + SOON
    while not wanted(http.get(f"/jobs/{job_id}").json()):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_grpc_beside_http(http: httpx.Client, grpc_port: int, tmp_path: Path) -> None:
    """The example makes a video, and says what a refusal says; events come as they happen; a client that leaves has its
    job cancelled if it asked for that, else not."""
    made = example(grpc_port, tmp_path / "video.mp4", "--key", "a key")
    assert made.returncode == 0, made.stderr
    assert made.stdout.splitlines()[0].startswith("queued job_")
    assert "of 50" in made.stdout
    assert read_video(tmp_path / "video.mp4").shape == (17, 64, 64, 3)
    refused = example(grpc_port, tmp_path / "none.mp4")
    assert refused.returncode == 1
    assert refused.stderr.startswith("UNAUTHENTICATED invalid_api_key: an API key is needed")
    with grpc.insecure_channel(f"127.0.0.1:{grpc_port}") as channel:
        videos = VideosStub(channel)
        _events_while_the_job_runs(videos, http)
        _refusals_have_their_problem(videos)
        _clients_leave(videos, http)


def _events_while_the_job_runs(videos: VideosStub, http: httpx.Client) -> None:
    call = videos.Generate(GenerateRequest(prompt="a", **LONG), metadata=KEY)
    for event in call:
        if event.kind == "step":
            break
    assert http.get(f"/jobs/{event.job_id}").json()["status"] == "running"
    assert videos.Get(JobId(job_id=event.job_id), metadata=KEY).step > 0
    videos.Cancel(JobId(job_id=event.job_id), metadata=KEY)
    kinds: list[str] = []
    with pytest.raises(grpc.RpcError) as ended:
        kinds.extend(event.kind for event in call)
    assert kinds[-1] == "cancelled"
    assert ended.value.code() == grpc.StatusCode.CANCELLED
    assert b'"code": "cancelled"' in dict(ended.value.trailing_metadata())["problem-bin"]


def _refusals_have_their_problem(videos: VideosStub) -> None:
    for call, code in (
        (videos.Generate(GenerateRequest(prompt="a", height=33), metadata=KEY), "invalid_request"),
        (videos.Follow(FollowRequest(job_id="job_1"), metadata=KEY), "not_found"),
    ):
        with pytest.raises(grpc.RpcError) as refused:
            list(call)
        problem = json.loads(dict(refused.value.trailing_metadata())["problem-bin"])
        assert problem["error"]["code"] == code
        assert problem["error"]["message"] == refused.value.details()
    with pytest.raises(grpc.RpcError) as unknown:
        videos.Get(JobId(job_id="job_1"), metadata=KEY)
    assert unknown.value.code() == grpc.StatusCode.NOT_FOUND


def _clients_leave(videos: VideosStub, http: httpx.Client) -> None:
    left = {}
    for cancels in (True, False):
        request = GenerateRequest(prompt="a", cancel_on_disconnect=cancels, **LONG)
        call = videos.Generate(request, metadata=KEY)
        left[cancels] = next(event.job_id for event in call if event.kind == "running")
        call.cancel()
        if cancels:
            until(http, left[True], lambda job: job["status"] == "cancelled")
    until(http, left[False], lambda job: job["step"] > 20)
    assert http.delete(f"/jobs/{left[False]}").json()["status"] in ("running", "cancelled")


def test_grpc_wants_keys(config: Path) -> None:
    """Serve opens its port on all addresses: without keys, `serve run` ends."""
    ended = subprocess.run(
        [sys.executable, "-m", "ray.serve.scripts", "run", str(config)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "RAY_AUTH_MODE": "disabled"},
    )
    assert ended.returncode != 0
    assert "which Serve opens on all addresses" in ended.stdout + ended.stderr
