"""A replica whose two ranks share each generation, as real processes."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from hubs import exported

from warpcache_ray.engine.checkpoint import Checkpoint, final
from warpcache_ray.engine.engine import Engine
from warpcache_ray.engine.events import Generation
from warpcache_ray.policy_spec import parse_policy
from warpcache_ray.quality.fidelity import psnr
from warpcache_ray.video import read_video, write_video

pytestmark = pytest.mark.slow

NAME = "toyworld-2rank"
LONG = {"prompt": "a cat", "seed": 0, "policy": "interval", "num_inference_steps": 100}
SIZE = {"height": 32, "width": 32, "num_frames": 9, "num_inference_steps": 8}
POLICIES = {
    "auto": {"name": "auto", "max_calls": 4},
    "worldcache": {"name": "worldcache", "threshold": 0.5},
    "exact": "never",
}
OF_ONE_RANK = {"seconds", "peak_memory_bytes", "peak_cache_bytes"}
"""A rank's own: its time, its memory, its share of the features."""
COPIES = {"auto": 2, "worldcache": 1, "exact": 0}
"""How often two ranks hold what one alone would: latents are on both, features are shared out."""


Pair = Callable[[], list[psutil.Process]]


def rank_actors() -> list[Any]:
    """The handles of our pair, the first rank first."""
    import ray

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    known = ray.util.list_named_actors(all_namespaces=True)
    ours = sorted(
        (k for k in known if k["name"].startswith(f"{NAME}-")), key=lambda k: k["name"][-1]
    )
    return [ray.get_actor(**k) for k in ours]


@pytest.fixture(scope="module")
def pair() -> Pair:
    """The processes of our two ranks, which have to be idle, the first one first."""
    import ray

    def processes() -> list[psutil.Process]:
        pids = ray.get([a.__ray_call__.remote(lambda _: os.getpid()) for a in rank_actors()])
        return [psutil.Process(pid) for pid in pids]

    return processes


@pytest.fixture
def shared(pair: Pair, deploy: Callable[..., httpx.Client]) -> httpx.Client:
    """The two-rank configuration with a tiny model."""
    return deploy("toyworld-2rank", "wan", parallel={"ulysses": 2}, slow_step_s=5.0)


@pytest.mark.parametrize("name", POLICIES)
def test_two_ranks_make_what_one_makes(
    shared: httpx.Client, folders: dict[str, Path], name: str
) -> None:
    """The same decisions as one engine by itself; the same latents to the last bit, but where sums over the ranks
    enter the features (WorldCache's gain)."""
    policy = POLICIES[name]
    asked = {"prompt": "a cat", "seed": 3, "policy": policy, "wait": True}
    before = exported(shared.get("/metrics").text)
    record = shared.post("/generate", json=asked).raise_for_status().json()
    after = exported(shared.get("/metrics").text)
    engine = Engine.load(folders["wan"])
    alone = engine.generate(Generation("a cat", 3, **SIZE), parse_policy(policy))
    assert record["status"] == "succeeded"
    assert record["cache"]["peak_cache_bytes"] == COPIES[name] * alone.stats.peak_cache_bytes
    (attempt,) = record["attempts"]
    grown = {k: v - before.get(k, 0.0) for k, v in after.items()}
    took = 2 * (attempt["ended_at"] - attempt["started_at"])
    assert grown["warpcache_useful_worker_seconds_total"] == pytest.approx(took)
    assert grown["warpcache_steps_made_total"] == SIZE["num_inference_steps"]
    decided = [v for k, v in grown.items() if k.startswith("warpcache_decisions_total")]
    assert sum(decided) == len(alone.stats.records)
    assert after["warpcache_ranks_ready"] == 2
    decided = {k: v for k, v in alone.stats.summary().items() if k not in OF_ONE_RANK}
    assert {k: v for k, v in record["cache"].items() if k not in OF_ONE_RANK} == decided
    same = record["result"]["latents_sha256"] == alone.latents_sha256
    assert same or name == "worldcache"


def test_hunyuan_is_shared_too(
    deploy: Callable[..., httpx.Client], folders: dict[str, Path], tmp_path: Path
) -> None:
    """Its configuration, on two ranks, makes a video whose steps are skipped as one engine skips them."""
    client = deploy("hunyuan", "hunyuan", parallel={"ulysses": 2}, slow_step_s=5.0)
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
    # A last bit of a pixel may change what the codec makes of its block.
    assert psnr(read_video(path), read_video(tmp_path / "alone.mp4")) > 45


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


def test_an_epoch_is_raised_on_both(shared: httpx.Client, until: Callable[..., Any]) -> None:
    """In mid-job: both ranks compute the next step (a rank that didn't would leave the other waiting), once, and the
    record names the epoch."""
    asked = LONG | {"policy": {"name": "first_block", "threshold": 1e6}}
    undisturbed = shared.post("/generate", json=asked | {"wait": True}).raise_for_status().json()
    job = shared.post("/generate", json=asked).raise_for_status().json()
    until(shared, job["id"], lambda r: 5 < r["step"] < 60)
    said = shared.post("/admin/invalidate", json={"job_id": job["id"]}).raise_for_status().json()
    record = until(shared, job["id"], lambda r: r["finished_at"] is not None)
    assert record["cache"]["recomputed"] == undisturbed["cache"]["recomputed"] + 2
    assert record["epoch"] == record["result"]["epoch"] == said["epoch"]
    assert shared.post("/admin/invalidate", json={"job_id": "job_x"}).status_code == 404


def test_a_deadline_ends_a_running_job(shared: httpx.Client) -> None:
    """The job fails for its deadline, 504 to whoever waits, and the next one is made."""
    answer = shared.post("/generate", json=LONG | {"deadline_s": 0.4, "wait": True})
    assert answer.status_code == 504
    assert answer.json()["error"]["code"] == "deadline_exceeded"
    short = {**LONG, "num_inference_steps": 4, "wait": True}
    assert shared.post("/generate", json=short).json()["status"] == "succeeded"


@pytest.mark.parametrize("asked_for", [True, False])
def test_a_client_that_leaves(
    shared: httpx.Client, until: Callable[..., Any], asked_for: bool
) -> None:
    """Its job ends if it said so, and is made to the end if it didn't."""
    before = shared.get("/health").json()["jobs"]
    body = LONG | {"wait": True, "cancel_on_disconnect": asked_for}
    with pytest.raises(httpx.ReadTimeout):
        shared.post("/generate", json=body, timeout=0.7)
    short = {**LONG, "num_inference_steps": 4, "wait": True}
    shared.post("/generate", json=short).raise_for_status()
    after = shared.get("/health").json()["jobs"]
    assert after["cancelled"] - before["cancelled"] == asked_for
    assert after["succeeded"] - before["succeeded"] == 2 - asked_for


def bound_the_cache(rank: Any, budget: int) -> None:
    """From now on this process keeps so many bytes."""
    rank.engine.store.budget = budget


def test_a_request_larger_than_the_cache_is_recomputed(shared: httpx.Client) -> None:
    """With less room than its features need, it skips nothing on either rank, and the record says why."""
    import ray

    asked = LONG | {"policy": {"name": "first_block", "threshold": 1e6}, "wait": True}
    budgets = [8 << 30, 1000, 8 << 30]
    skipped, warned = [], []
    for budget in budgets:
        ray.get([a.__ray_call__.remote(bound_the_cache, budget) for a in rank_actors()])
        record = shared.post("/generate", json=asked).raise_for_status().json()
        skipped.append(record["cache"]["reused"])
        warned += [w for w in record["result"]["warnings"] if "cache_bytes = 1000" in w]
    assert skipped[0] == skipped[2] > 0 == skipped[1]
    assert len(warned) == 1


def fail_in_the_model(rank: Any, error: str) -> None:
    """From now on the third denoiser call of this process fails, in the midst of the blocks."""
    import torch

    calls: list[int] = []

    def hook(*_: Any) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise (torch.OutOfMemoryError if error == "oom" else RuntimeError)("as injected")

    blocks: Any = rank.engine.pipeline.transformer.blocks
    blocks[1].register_forward_pre_hook(hook)


def fail_in_the_decoder(rank: Any) -> None:
    """The next decoding of this process runs out of memory."""
    import torch

    vae: Any = rank.engine.pipeline.vae
    decode = vae._decode

    def once(*_: Any, **__: Any) -> None:
        vae._decode = decode
        raise torch.OutOfMemoryError("as injected")

    vae._decode = once


@pytest.mark.parametrize(("error", "code"), [("oom", "oom"), ("raised", "generation_failed")])
def test_one_rank_fails_while_the_other_waits_for_it(
    shared: httpx.Client,
    pair: Pair,
    error: str,
    code: str,
    record_property: Callable[[str, object], None],
) -> None:
    """The job fails for the one's reason and isn't tried again; the other isn't left in its collective; the next job is
    made by a new pair."""
    import ray

    ray.get(rank_actors()[1].__ray_call__.remote(fail_in_the_model, error))
    before = pair()
    answer = shared.post("/generate", json=LONG | {"wait": True, "policy": "never"})
    struck = time.monotonic()
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == code
    assert answer.json()["job"]["fence"] == 1
    short = {**LONG, "num_inference_steps": 4, "wait": True}
    assert shared.post("/generate", json=short).raise_for_status().json()["fence"] == 1
    record_property("at work again after", round(time.monotonic() - struck, 2))
    assert not psutil.wait_procs(before, timeout=20)[1]


def test_a_decoder_out_of_memory_costs_no_rank(shared: httpx.Client, pair: Pair) -> None:
    """The first rank decodes again, in tiles; the record says so, and the same pair goes on."""
    import ray

    before = {p.pid for p in pair()}
    ray.get(rank_actors()[0].__ray_call__.remote(fail_in_the_decoder))
    short = {**LONG, "num_inference_steps": 4, "wait": True}
    for warned in (1, 0):
        record = shared.post("/generate", json=short).raise_for_status().json()
        assert len(record["result"]["warnings"]) == warned
    assert {p.pid for p in pair()} == before


def test_two_ranks_audit_together(shared: httpx.Client, folders: dict[str, Path]) -> None:
    """What the first one measures is what one engine by itself does; told to hand it back, both leave it off at the
    same step, and go on with it from there."""
    import ray

    engine = Engine.load(folders["wan"])
    request = {"prompt": "a cat", "seed": 3, **SIZE}
    cached = engine.generate(Generation(**request), parse_policy("interval", every=3))
    exact = engine.generate(Generation(**request), parse_policy("never"))
    served = final(cached.latents, SIZE["num_inference_steps"]).to_bytes()

    def audit(name: str, checkpoint: bytes | None) -> list[Any]:
        task = {"id": name, "job_id": "job_1", "request": request}
        return ray.get([a.audit.remote(task, served, checkpoint, None) for a in rank_actors()])

    (found, error), other = audit("audit:1", None)
    assert (error, other) == (None, ({}, None))
    assert found["psnr"] == pytest.approx(psnr(cached.frames, exact.frames), abs=1e-6)
    first, _ = rank_actors()
    ray.get(first.hand_back.remote("audit:2"))
    (left, error), other = audit("audit:2", None)
    assert error is None
    assert other == ({"left_at": None}, None)
    assert Checkpoint.from_bytes(left["left_at"]).step == 1
    (again, error), _ = audit("audit:3", left["left_at"])
    assert (again, error) == (found, None)
