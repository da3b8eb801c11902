"""What /metrics and the records tell of whole lives, over a coordinator and its store; the test plays the replica."""

import asyncio
from dataclasses import replace

import pytest
from hubs import CONFIG, SOON, claim, exported, report, submit, totals
from redis.exceptions import ConnectionError

from warpcache_ray.errors import (
    Cancelled,
    GenerationFailed,
    JobNotReady,
    Unavailable,
    WorkerLost,
)
from warpcache_ray.parallel.layout import Layout
from warpcache_ray.serving.coordinator import Coordinator

TIMINGS = {"text": 0.25, "denoise": 1.5, "decode": 0.5, "encode": 0.125}
COLUMNS = {"step": [0, 1], "decision": ["recompute", "reuse"], "drift": [None, 0.02]}


async def told(hub):
    """/metrics as Prometheus reads it."""
    return exported(await hub.metrics_text())


def grown(before, after):
    """What counters have gained, histograms' buckets and the process's own left out."""
    ours = {k: v for k, v in after.items() if k.startswith("warpcache_") and "_bucket" not in k}
    counters = {k: v for k, v in ours.items() if k.split("{")[0].endswith(("_total", "_count"))}
    gained = {k: v - before.get(k, 0.0) for k, v in counters.items()}
    return {k.removeprefix("warpcache_"): v for k, v in gained.items() if v}


async def test_a_success_told_twice(hub):
    """Every report and the end come twice; each figure is that of one life."""
    await hub.configure(replace(CONFIG, parallel=Layout(ulysses=2)))
    job_id = await submit(hub)
    before = await told(hub)
    await claim(hub)
    for step in (1, 1, 4, 4, 3):
        await report(hub, job_id, 1, totals(step, hits=step - 1, kept=step))
    for _ in range(2):
        assert await hub.finish(job_id, 1, {"timings": TIMINGS}, None)
    record = await hub.get(job_id)
    (attempt,) = record["attempts"]
    after = grown(before, await told(hub))
    spent = after.pop("useful_worker_seconds_total")
    assert spent == pytest.approx(2 * (attempt["ended_at"] - attempt["started_at"]))
    assert attempt["worker_seconds"] == pytest.approx(spent, abs=1e-3)
    stages = {f'stage_seconds_total{{stage="{s}"}}': v for s, v in TIMINGS.items()}
    counts = {f'stage_latency_seconds_count{{stage="{s}"}}': 1 for s in TIMINGS}
    assert after == {
        'requests_total{status="succeeded"}': 1,
        "request_latency_seconds_count": 1,
        "queue_wait_seconds_count": 1,
        "attempts_started_total": 1,
        'policies_served_total{source="request"}': 1,
        'attempts_ended_total{end="succeeded"}': 1,
        "checkpoints_kept_total": 1,
        "steps_made_total": 4,
        'decisions_total{branch="cond",decision="recompute"}': 1,
        'decisions_total{branch="cond",decision="reuse"}': 3,
        "cache_hits_total": 3,
        "recomputes_total": 1,
        "drift_observed_count": 1,
        "saved_worker_seconds_total": 1.5 * 3 * 2,
        **stages,
        **counts,
    }


async def test_a_loss_a_recovery_and_a_stale_end(hub):
    """What the lost attempt made before its checkpoint is useful in the end; what it says later counts nowhere."""
    job_id = await submit(hub)
    before = await told(hub)
    await claim(hub)
    await report(hub, job_id, 1, totals(3, kept=2))
    for _ in range(2):
        await hub.finish(job_id, 1, {}, WorkerLost("x").to_dict())
    await claim(hub, "replica_2")
    await report(hub, job_id, 2, totals(0, resumed_at=2))
    await report(hub, job_id, 2, totals(3, resumed_at=2))
    assert (await report(hub, job_id, 1, totals(4, hits=9))).cancel
    assert await hub.finish(job_id, 2, {}, None)
    assert not await hub.finish(job_id, 1, {"timings": TIMINGS}, None)
    lost, made = (await hub.get(job_id))["attempts"]
    after = grown(before, await told(hub))
    assert (lost["end"], made["end"], made["resumed_at"]) == ("lost", "succeeded", 2)
    took = [a["ended_at"] - a["started_at"] for a in (lost, made)]
    assert after["useful_worker_seconds_total"] == pytest.approx(took[0] * 2 / 3 + took[1])
    wasted = after['wasted_worker_seconds_total{reason="worker_lost"}']
    assert wasted == pytest.approx(took[0] / 3)
    recovery = made["first_step_at"] - lost["seen_at"]
    assert after["recovery_seconds_total"] == pytest.approx(recovery)
    assert (after["recovery_latency_seconds_count"], after["attempts_resumed_total"]) == (1, 1)
    assert (after["steps_made_total"], after["steps_resumed_total"]) == (4, 2)
    assert (after["attempts_started_total"], after['attempts_ended_total{end="lost"}']) == (2, 1)
    assert "cache_hits_total" not in after


@pytest.mark.parametrize(
    ("error", "code", "status"),
    [
        (Cancelled("after step 1"), "cancelled", "cancelled"),
        (GenerationFailed("x"), "generation_failed", "failed"),
    ],
)
async def test_what_came_to_nothing(error, code, status, hub):
    """A running job that is cancelled or fails: its seconds are wasted, for that reason."""
    job_id = await submit(hub)
    before = await told(hub)
    await claim(hub)
    await report(hub, job_id, 1, totals(1))
    if status == "cancelled":
        await hub.cancel(job_id)
    for _ in range(2):
        await hub.finish(job_id, 1, {}, error.to_dict())
    (attempt,) = (await hub.get(job_id))["attempts"]
    after = grown(before, await told(hub))
    took = attempt["ended_at"] - attempt["started_at"]
    assert after[f'wasted_worker_seconds_total{{reason="{code}"}}'] == pytest.approx(took)
    assert "useful_worker_seconds_total" not in after
    assert (after[f'errors_total{{code="{code}"}}'], attempt["error"]) == (1, code)
    assert after[f'requests_total{{status="{status}"}}'] == 1
    assert after.get("cancel_latency_seconds_count") == (1 if status == "cancelled" else None)


async def test_how_it_stands_follows_the_jobs(hub):
    """Gauges rise and fall with what waits and runs."""
    for waiting, running in ((1, 0), (2, 0)):
        await submit(hub)
        found = await told(hub)
        assert found['warpcache_queue_jobs{priority="normal"}'] == waiting
        assert found["warpcache_jobs_running"] == running
    job_id, _ = await claim(hub, "replica_1")
    await report(hub, job_id, 1, totals(1))
    found = await told(hub)
    assert (found["warpcache_jobs_running"], found["warpcache_cache_size"]) == (1, 8)
    assert (found["warpcache_replicas_ready"], found["warpcache_ranks_ready"]) == (1, 1)
    await hub.finish(job_id, 1, {}, None)
    found = await told(hub)
    assert (found["warpcache_jobs_running"], found["warpcache_cache_size"]) == (0, 0)


async def test_a_price(hub):
    """As configured, for whoever multiplies."""
    await hub.configure(replace(CONFIG, gpu_second_price=0.0012))
    assert (await told(hub))["warpcache_gpu_second_price"] == 0.0012


async def test_a_coordinator_that_was_started_anew_counts_what_is_new(
    hub, application, store_server
):
    """From 0: what its predecessor counted isn't counted again, and the attempt under way has its whole end."""
    job_id, other = await submit(hub), await submit(hub)
    await claim(hub)
    await report(hub, job_id, 1, totals(2, hits=1))
    jobs = await hub._jobs()
    await jobs.change(job_id, lambda job: replace(job, seen_at=0.0))
    fresh = Coordinator(application, CONFIG, store_server)
    before = await told(fresh)
    assert grown({}, before) == {}
    await report(fresh, job_id, 1, totals(2, hits=1))
    await report(fresh, job_id, 1, totals(4, hits=3))
    await fresh.finish(job_id, 1, {}, None)
    await fresh.cancel(other)
    after = grown(before, await told(fresh))
    assert (after["cache_hits_total"], after["steps_made_total"]) == (2, 2)
    assert "jobs_submitted_total" not in after
    assert "attempts_started_total" not in after
    (attempt,) = (await fresh.get(job_id))["attempts"]
    took = attempt["ended_at"] - attempt["started_at"]
    assert after["useful_worker_seconds_total"] == pytest.approx(took)
    assert after['requests_total{status="cancelled"}'] == 1


async def test_a_store_that_is_away(hub, monkeypatch):
    """Its failures are counted, and seen on /metrics, which doesn't need it."""
    jobs = await hub._jobs()
    await submit(hub)

    async def broken(*_, **__):
        raise ConnectionError("gone")

    with monkeypatch.context() as patch:
        patch.setattr(jobs.store, "_put_script", broken)
        with pytest.raises(Unavailable):
            await submit(hub)
        found = await told(hub)
        assert (found["warpcache_store_up"], found["warpcache_store_errors_total"]) == (0, 1)
        await asyncio.sleep(0.01)
    await submit(hub)
    found = await told(hub)
    assert (found["warpcache_store_up"], found["warpcache_store_errors_total"]) == (1, 1)
    assert 0.01 <= found["warpcache_store_away_seconds_total"] < SOON


async def test_decisions_of_the_published_attempt(hub, lonely):
    """Over HTTP, once there is a video; those of a stale attempt are nobody's; they go with the job's record."""
    job_id = await submit(hub)
    await claim(hub)
    with pytest.raises(JobNotReady, match="is running"):
        await hub.decisions(job_id)
    answer = await lonely.get(f"/jobs/{job_id}/decisions")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "job_not_ready")
    await hub.finish(job_id, 1, {}, WorkerLost("x").to_dict())
    await claim(hub)
    await report(hub, job_id, 2, totals(4, resumed_at=2))
    await hub.keep_decisions(job_id, 2, {"transformer.cond": COLUMNS})
    with pytest.raises(JobNotReady, match="is running"):
        await hub.decisions(job_id)
    await hub.finish(job_id, 2, {}, None)
    await hub.keep_decisions(job_id, 1, {"transformer.cond": {"step": [9]}})
    answer = await lonely.get(f"/jobs/{job_id}/decisions")
    branches = {"transformer.cond": COLUMNS}
    assert answer.json() == {"attempt": 2, "resumed_at": 2, "branches": branches}
    jobs = await hub._jobs()
    await jobs.remove(job_id)
    assert await jobs.store.decisions(job_id, 2) is None
    assert (await lonely.get(f"/jobs/{job_id}/decisions")).status_code == 404
