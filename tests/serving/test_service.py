"""The service on a real Ray: HTTP in, video out."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from diffusers import DiffusionPipeline
from openai import NotFoundError, OpenAI
from torch import Tensor
from typer.testing import CliRunner

from warpcache_ray.cli import app as cli
from warpcache_ray.engine.events import latents_sha256
from warpcache_ray.video import read_video

PROMPT = {"prompt": "a cat runs", "seed": 0}


@pytest.fixture
def wan(deploy: Callable[..., httpx.Client]) -> httpx.Client:
    return deploy("wan", "wan", policy={"name": "first_block", "threshold": 10.0})


def samples(client: httpx.Client) -> dict[str, float]:
    """The unlabelled samples of /metrics."""
    lines = client.get("/metrics").text.splitlines()
    return {k: float(v) for k, v in (x.rsplit(" ", 1) for x in lines if x[0] != "#")}


def test_hunyuan_config_serves(deploy: Callable[..., httpx.Client], tmp_path: Path) -> None:
    """configs/hunyuan.yaml, its model swapped for a tiny one, makes the video that was asked for."""
    client = deploy("hunyuan", "hunyuan")
    answer = client.post("/generate", json=PROMPT, headers={"accept": "video/mp4"})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "video/mp4"
    path = tmp_path / "video.mp4"
    path.write_bytes(answer.content)
    assert read_video(path).shape == (9, 32, 32, 3)
    assert client.get("/models").json()["transformer"] == "HunyuanVideoTransformer3DModel"


def test_same_latents_over_http_cli_and_diffusers(
    wan: httpx.Client, folders: dict[str, Path], tmp_path: Path, latents: Callable[..., Tensor]
) -> None:
    """With the cache off, one request and seed have one fingerprint, whichever way they come."""
    exact = wan.post("/generate", json={**PROMPT, "quality": "exact", "wait": True}).json()
    pipe = DiffusionPipeline.from_pretrained(folders["wan"])
    plain = latents_sha256(latents(pipe, max_sequence_length=512))
    assert exact["result"]["latents_sha256"] == plain
    options = (
        "--seed 0 --height 32 --width 32 --num-frames 9 --num-inference-steps 8 --policy never"
    )
    out = tmp_path / "video.mp4"
    told = CliRunner().invoke(
        cli,
        [
            "generate",
            PROMPT["prompt"],
            "--model",
            str(folders["wan"]),
            "--out",
            str(out),
            *options.split(),
        ],
    )
    assert told.exit_code == 0, told.output
    assert plain[:16] in told.output
    assert read_video(out).shape == (9, 32, 32, 3)


def test_job_from_id_to_video(wan: httpx.Client, until: Callable[..., Any], tmp_path: Path) -> None:
    """A job id at once; then progress, the cache's account, policy and seed; then the video."""
    asked = {"prompt": "a field", "num_inference_steps": 20, "output_format": "webm"}
    job = wan.post("/generate", json=asked).json()
    assert job["status"] in ("queued", "running")
    record = until(wan, job["id"], lambda r: r["status"] == "succeeded")
    assert record["step"] == record["total_steps"] == 20
    assert record["policy"]["name"] == "first_block"
    assert record["cache"]["reused"] > 0
    assert isinstance(record["request"]["seed"], int)
    video = wan.get(f"/jobs/{job['id']}/video")
    assert video.headers["content-type"] == "video/webm"
    path = tmp_path / "video.webm"
    path.write_bytes(video.content)
    assert read_video(path).shape == (9, 32, 32, 3)


def test_openais_client(wan: httpx.Client, tmp_path: Path) -> None:
    """Through the real proxy, under a route prefix: OpenAI's own client makes, lists, downloads and deletes a video."""
    with OpenAI(base_url=f"{wan.base_url}v1", api_key="none", max_retries=0) as client:
        (model,) = client.models.list().data
        video = client.videos.create_and_poll(
            prompt="a cat runs", model=model.id, seconds="1", size="48x32", extra_body={"seed": 0}
        )
        assert (video.status, video.progress, video.size) == ("completed", 100, "48x32")
        assert video.inference_time_s > 0
        assert video.peak_memory_mb > 1
        assert client.videos.list(limit=1).data[0].id == video.id
        path = tmp_path / "video.mp4"
        client.videos.download_content(video.id).write_to_file(path)
        assert read_video(path).shape == (9, 32, 48, 3)
        assert wan.get(video.url).content == path.read_bytes()
        assert (
            client.videos.download_content(video.id, variant="thumbnail").content[8:12] == b"WEBP"
        )
        assert client.videos.delete(video.id).deleted
        with pytest.raises(NotFoundError):
            client.videos.retrieve(video.id)


def test_the_page_stands_under_the_service_s_prefix(wan: httpx.Client) -> None:
    """With its scripts, and the description's; both are counted, in the figures of the routes."""
    for path in ("/", "/docs"):
        page = wan.get(path)
        assert '<base href="/wan/">' in page.text
        for file in re.findall(r'"(page/[^"]+)"', page.text):
            assert wan.get(f"/{file}").status_code == 200
    counted = (
        r'warpcache_http_requests_total\{ingress="\w+",method="GET",route="/docs",status="200"}'
    )
    assert re.search(counted, wan.get("/metrics").text)


def test_metrics_move(wan: httpx.Client) -> None:
    """Hits are reuses and warps, recomputes are misses and forced ones; the totals grow by the job's account."""
    before = samples(wan)
    job = wan.post("/generate", json={**PROMPT, "wait": True}).json()
    after = samples(wan)
    grown = {k: after[k] - before.get(k, 0.0) for k in after}
    assert (
        grown["warpcache_cache_hits_total"] == job["cache"]["reused"] + job["cache"]["warped"] > 0
    )
    assert grown["warpcache_recomputes_total"] == job["cache"]["recomputed"] > 0
    assert grown["warpcache_cache_misses_total"] == job["cache"]["misses"]
    assert grown['warpcache_requests_total{status="succeeded"}'] == 1
    assert grown["warpcache_request_latency_seconds_count"] == 1
    assert grown["warpcache_drift_observed_count"] > 0
    assert 0 < after["warpcache_hit_rate"] <= 1
    decided = {k: v for k, v in grown.items() if k.startswith("warpcache_decisions_total")}
    assert sum(decided.values()) == 2 * grown["warpcache_steps_made_total"] == 2 * 8
    (attempt,) = job["attempts"]
    spent = attempt["ended_at"] - attempt["started_at"]
    assert grown["warpcache_useful_worker_seconds_total"] == pytest.approx(spent)
    stages = {k: v for k, v in grown.items() if k.startswith("warpcache_stage_seconds_total") and v}
    assert len(stages) == len(job["result"]["timings"]) == 5
    assert 0 < sum(stages.values()) < spent
    assert after["warpcache_peak_memory_bytes"] >= job["cache"]["peak_memory_bytes"] > 0


def test_decisions_are_told_one_by_one(wan: httpx.Client) -> None:
    """For each branch and step; as many as the record counts."""
    job = wan.post("/generate", json={**PROMPT, "wait": True}).json()
    told = wan.get(f"/jobs/{job['id']}/decisions").raise_for_status().json()
    assert (told["attempt"], told["resumed_at"]) == (1, 0)
    assert sorted(told["branches"]) == ["transformer.cond", "transformer.uncond"]
    kinds = [kind for columns in told["branches"].values() for kind in columns["decision"]]
    for branch in told["branches"].values():
        assert branch["step"] == list(range(8))
        assert {len(column) for column in branch.values()} == {8}
    assert kinds.count("recompute") == job["cache"]["recomputed"]
    assert kinds.count("reuse") == job["cache"]["reused"]
    assert "decisions" not in job["result"]


def test_cancel_within_one_step(wan: httpx.Client, until: Callable[..., Any]) -> None:
    """A running job ends as cancelled, at most one step after the one under way; the next job runs."""
    # Large, so that a step takes longer than a report.
    large = {"height": 256, "width": 256, "num_frames": 33, "policy": "never"}
    job = wan.post("/generate", json={**PROMPT, **large, "num_inference_steps": 50}).json()
    until(wan, job["id"], lambda r: r["step"] > 0)
    seen = wan.delete(f"/jobs/{job['id']}").json()["step"]
    record = until(wan, job["id"], lambda r: r["finished_at"] is not None)
    assert record["status"] == "cancelled"
    assert record["error"]["code"] == "cancelled"
    assert record["step"] <= seen + 2
    assert wan.get(f"/jobs/{job['id']}/video").status_code == 404
    assert wan.post("/generate", json={**PROMPT, "wait": True}).status_code == 200


def test_events_come_while_the_job_runs(wan: httpx.Client) -> None:
    """Through the real proxy: steps are there before the job has ended, the stream ends with it, and a client that
    comes back has the rest."""
    large = {"height": 128, "width": 128, "num_frames": 33, "policy": "never"}
    job = wan.post("/generate", json={**PROMPT, **large, "num_inference_steps": 20}).json()
    url, told, seen = f"/jobs/{job['id']}/events", [], []
    with wan.stream("GET", url) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        for line in answer.iter_lines():
            name, _, value = line.partition(": ")
            if name == "id":
                told.append((told.pop(), value))
            elif name == "event":
                told.append(value)
                if value == "step":
                    seen.append(wan.get(f"/jobs/{job['id']}").json()["status"])
    kinds = [kind for kind, _ in told]
    assert kinds[:3] == ["queued", "running", "step"]
    assert kinds[-1] == "succeeded"
    assert seen.count("running") > 1
    rest = wan.get(url, headers={"Last-Event-ID": told[-2][1]}).text
    assert rest.count("event: ") == rest.count("event: succeeded") == 1
    assert wan.get(url, headers={"Last-Event-ID": told[-1][1]}).status_code == 204


def test_a_failed_generation_is_told(wan: httpx.Client) -> None:
    """A model that raises ends its job as failed with a typed error; the service goes on."""
    too_long = {**PROMPT, "num_frames": 81, "height": 512, "width": 1024, "wait": True}
    answer = wan.post("/generate", json={**too_long, "num_inference_steps": 1})
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "generation_failed"
    assert wan.post("/generate", json={**PROMPT, "wait": True}).status_code == 200


def test_bad_input_goes_on(wan: httpx.Client) -> None:
    """Through the real proxy: 4xx with field and value for each bad body, however it's sent, and the service still
    healthy."""
    for body, status in (
        (b'{"prompt": "a', 400),
        (b'{"prompt": ""}', 422),
        (b'{"prompt": "a", "height": 33}', 422),
        (b'{"prompt": "a", "colour": 1}', 422),
        (b" " * 10_000_000, 413),
        (iter([b" " * 100_000] * 100), 413),
    ):
        answer = wan.post("/generate", content=body, headers={"content-type": "application/json"})
        assert answer.status_code == status, answer.text
        assert answer.json()["error"]["code"]
    assert wan.get("/health").json()["status"] == "ok"
    assert wan.get("/docs").status_code == 200
