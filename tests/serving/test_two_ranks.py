"""A replica whose two ranks share each generation, as real processes."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from warpcache_ray.engine.engine import Engine
from warpcache_ray.engine.events import Generation
from warpcache_ray.policy_spec import parse_policy
from warpcache_ray.video import read_video, write_video

pytestmark = pytest.mark.slow

LONG = {"prompt": "a cat", "seed": 0, "policy": "interval", "num_inference_steps": 100}
SIZE = {"height": 32, "width": 32, "num_frames": 9, "num_inference_steps": 8}
POLICIES = {
    "auto": {"name": "auto", "max_calls": 4},
    "worldcache": {"name": "worldcache", "threshold": 0.5},
    "exact": "never",
}
OF_ONE_RANK = {"seconds", "peak_memory_bytes", "peak_cache_bytes"}
"""A rank's own: its time, its memory, its share of the features."""


Pair = Callable[[], list[psutil.Process]]


def ranks() -> list[psutil.Process]:
    """The processes of all rank actors on this machine, the oldest first."""
    found = [
        process
        for process in psutil.process_iter(["cmdline", "create_time"])
        if "ray::Rank" in " ".join(process.info["cmdline"] or [])
    ]
    return sorted(found, key=lambda process: process.info["create_time"])


@pytest.fixture(scope="module")
def pair(ray_port: int) -> Pair:
    """The processes of our two ranks, the first one first; others, say of an earlier test, were there before."""
    strangers = {process.pid for process in ranks()}
    return lambda: [process for process in ranks() if process.pid not in strangers]


@pytest.fixture
def shared(pair: Pair, deploy: Callable[..., httpx.Client]) -> httpx.Client:
    """The two-rank configuration with a tiny model."""
    return deploy("toyworld-2rank", "wan", parallel={"ulysses": 2}, step_timeout_s=10.0)


@pytest.mark.parametrize("name", POLICIES)
def test_two_ranks_make_what_one_makes(
    shared: httpx.Client, folders: dict[str, Path], name: str
) -> None:
    """The same decisions as one engine by itself; the same latents to the last bit, but where sums over the ranks
    enter the features (WorldCache's gain)."""
    policy = POLICIES[name]
    asked = {"prompt": "a cat", "seed": 3, "policy": policy, "wait": True}
    record = shared.post("/generate", json=asked).raise_for_status().json()
    engine = Engine.load(folders["wan"])
    alone = engine.generate(Generation("a cat", 3, **SIZE), parse_policy(policy))
    assert record["status"] == "succeeded"
    decided = {k: v for k, v in alone.stats.summary().items() if k not in OF_ONE_RANK}
    assert {k: v for k, v in record["cache"].items() if k not in OF_ONE_RANK} == decided
    same = record["result"]["latents_sha256"] == alone.latents_sha256
    assert same or name == "worldcache"


def test_hunyuan_is_shared_too(
    deploy: Callable[..., httpx.Client], folders: dict[str, Path], tmp_path: Path
) -> None:
    """Its configuration, on two ranks, makes a video whose steps are skipped as one engine skips them."""
    client = deploy("hunyuan", "hunyuan", parallel={"ulysses": 2}, step_timeout_s=10.0)
    policy = {"name": "first_block", "threshold": 0.3}
    asked = {"prompt": "a cat", "seed": 3, "policy": policy, "wait": True}
    record = client.post("/generate", json=asked).raise_for_status().json()
    assert record["status"] == "succeeded"
    engine = Engine.load(folders["hunyuan"])
    alone = engine.generate(Generation("a cat", 3, **SIZE), parse_policy(policy)).stats.summary()
    assert record["cache"]["reused"] == alone["reused"] > 0
    assert record["cache"]["recomputed"] == alone["recomputed"]
    path = tmp_path / "video.mp4"
    path.write_bytes(client.get(f"/jobs/{record['id']}/video").raise_for_status().content)
    assert read_video(path).shape == (9, 32, 32, 3)


def test_both_may_decode(
    deploy: Callable[..., httpx.Client], folders: dict[str, Path], tmp_path: Path
) -> None:
    """Each its rows; the first rank writes the one video that a single engine makes, but for the codec."""
    client = deploy("cosmos", "wan", parallel={"ulysses": 2, "vae": True})
    asked = {"prompt": "a cat", "seed": 3, "policy": "never", "wait": True}
    for _ in range(2):
        record = client.post("/generate", json=asked).raise_for_status().json()
        assert record["status"] == "succeeded"
    path = tmp_path / "video.mp4"
    path.write_bytes(client.get(f"/jobs/{record['id']}/video").raise_for_status().content)
    alone = Engine.load(folders["wan"]).generate(
        Generation("a cat", 3, **SIZE), parse_policy("never")
    )
    write_video(tmp_path / "alone.mp4", alone.frames, 8, "mp4")
    off = read_video(path).astype(int) - read_video(tmp_path / "alone.mp4")
    assert abs(off).max() <= 2


@pytest.mark.parametrize(
    ("fault", "which"),
    [(signal.SIGKILL, 0), (signal.SIGKILL, 1), (signal.SIGSTOP, 0), (signal.SIGSTOP, 1)],
    ids=["first killed", "second killed", "first hung", "second hung"],
)
def test_ranks_live_and_die_together(
    shared: httpx.Client, pair: Pair, until: Callable[..., Any], fault: int, which: int
) -> None:
    """Whichever rank dies or hangs in mid-job, both are replaced and the job is made by the next pair."""
    before = pair()
    assert len(before) == 2
    job = shared.post("/generate", json=LONG).raise_for_status().json()
    until(shared, job["id"], lambda r: r["step"] > 5)
    before[which].send_signal(fault)
    record = until(shared, job["id"], lambda r: r["finished_at"] is not None)
    assert (record["status"], record["fence"]) == ("succeeded", 2)
    _, alive = psutil.wait_procs(before, timeout=20)
    assert not alive
    assert len(pair()) == 2


def test_a_cancel_is_heard_by_both(
    shared: httpx.Client, pair: Pair, until: Callable[..., Any]
) -> None:
    """It ends the job, and the pair goes on with the next one."""
    before = {p.pid for p in pair()}
    job = shared.post("/generate", json=LONG).raise_for_status().json()
    until(shared, job["id"], lambda r: r["step"] > 5)
    shared.delete(f"/jobs/{job['id']}").raise_for_status()
    record = until(shared, job["id"], lambda r: r["finished_at"] is not None)
    assert record["status"] == "cancelled"
    short = {**LONG, "num_inference_steps": 4, "wait": True}
    assert shared.post("/generate", json=short).json()["status"] == "succeeded"
    assert {p.pid for p in pair()} == before
