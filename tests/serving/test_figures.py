"""Figures of whole lives, by hand."""

import pytest
from hubs import totals

from warpcache_ray.errors import Cancelled, GenerationFailed, QueueTimeout
from warpcache_ray.serving import lifecycle
from warpcache_ray.serving.attempts import Progress
from warpcache_ray.serving.figures import Key, figures_of
from warpcache_ray.serving.lifecycle import Job

JOB = Job("job_1", {"prompt": "a", "priority": "low"}, {"name": "never"}, created_at=0.0)


def claimed(job=JOB, at=2.0, ranks=2):
    return lifecycle.claim(job, "replica_1", 0, at, ranks)


def reported(job, at, *place, **more):
    return lifecycle.report(job, job.fence, Progress.told(totals(*place, **more)), at)


def count(job, metric, *labels):
    return figures_of(job).counts.get(Key(metric, labels))


def observed(job, metric, *labels):
    return figures_of(job).observed.get(Key(metric, labels))


def test_a_job_that_waits():
    """It was submitted, and nothing else."""
    found = figures_of(JOB)
    assert found.counts == {Key("jobs_submitted_total", ("low",)): 1}
    assert found.observed == {}


def test_a_success():
    """Its attempt, stages and decisions; all of its seconds are useful, on each rank."""
    job = reported(claimed(), 4.0, 4, hits=3)
    timings = {"text": 0.5, "denoise": 3.0}
    job = lifecycle.succeed(job, 1, {"timings": timings}, 10.0)
    assert count(job, "requests_total", "succeeded") == 1
    assert count(job, "attempts_ended_total", "succeeded") == 1
    assert count(job, "decisions_total", "cond", "reuse") == 3
    assert count(job, "cache_hits_total") == 3
    assert count(job, "recomputes_total") == 1
    assert count(job, "steps_made_total") == 4
    assert count(job, "stage_seconds_total", "denoise") == 3.0
    assert observed(job, "stage_latency_seconds", "text") == [0.5]
    assert observed(job, "queue_wait_seconds") == [2.0]
    assert observed(job, "request_latency_seconds") == [10.0]
    assert count(job, "useful_worker_seconds_total") == 16.0
    # 30 of 40 blocks were skipped: without the cache it would have taken three times as long again.
    assert count(job, "saved_worker_seconds_total") == pytest.approx(3.0 * 3 * 2)


@pytest.mark.parametrize(
    ("error", "code", "status"),
    [
        (Cancelled("as asked").to_dict(), "cancelled", "cancelled"),
        (GenerationFailed("no").to_dict(), "generation_failed", "failed"),
    ],
)
def test_what_fails_is_wasted(error, code, status):
    """For the reason of its end."""
    job = lifecycle.fail(claimed(), 1, error, 5.0)
    assert count(job, "wasted_worker_seconds_total", code) == 6.0
    assert count(job, "useful_worker_seconds_total") == 0.0
    assert (count(job, "errors_total", code), count(job, "requests_total", status)) == (1, 1)


def test_a_cancellation_has_a_latency():
    """From the wish to the end."""
    job = lifecycle.request_end(claimed(), Cancelled("x"), 3.0)
    job = lifecycle.fail(job, 1, Cancelled("x").to_dict(), 3.5)
    assert observed(job, "cancel_latency_seconds") == [0.5]


def test_a_recovery():
    """From the lost one's last word to the next one's first step; what the next one took over is useful in the end."""
    job = reported(claimed(at=2.0), 4.0, 3, kept=2)
    job = lifecycle.lose(job, 1, 3, 1, 8.0)
    assert observed(job, "recovery_latency_seconds") is None
    job = reported(claimed(job, at=9.0), 10.0, 0, resumed_at=2)
    job = reported(job, 11.0, 3, resumed_at=2)
    assert observed(job, "recovery_latency_seconds") == [7.0]
    assert count(job, "recovery_seconds_total") == 7.0
    assert observed(job, "queue_wait_seconds") == [2.0, 5.0]
    assert count(job, "attempts_resumed_total") == 1
    assert (count(job, "steps_made_total"), count(job, "steps_resumed_total")) == (4, 2)
    assert count(job, "checkpoints_kept_total") == 1
    assert count(job, "useful_worker_seconds_total") is None
    job = lifecycle.succeed(job, 2, {}, 12.0)
    assert count(job, "useful_worker_seconds_total") == pytest.approx(2 * 6 * 2 / 3 + 2 * 3)
    assert count(job, "wasted_worker_seconds_total", "worker_lost") == pytest.approx(2 * 6 / 3)


def test_a_job_that_nobody_took():
    """It took no worker's time."""
    job = lifecycle.request_end(JOB, QueueTimeout("x"), 9.0)
    assert count(job, "errors_total", "queue_timeout") == 1
    assert not any("worker" in key.metric for key in figures_of(job).counts)


def test_approximations_are_hits_of_their_kind():
    """Anything but plain reuse is a warp."""
    kinds = {"recompute": 2, "reuse": 3, "forecast": 4, "blend+spatial": 5}
    told = totals(4) | {"decisions": {"uncond": kinds}, "summary": {"misses": 1, "evictions": 2}}
    job = lifecycle.report(claimed(), 1, Progress.told(told), 3.0)
    for kind, times in kinds.items():
        assert count(job, "decisions_total", "uncond", kind) == times
    names = ("recomputes_total", "cache_hits_total", "warp_operations_total", "cache_misses_total")
    assert [count(job, name) for name in names] == [2, 12, 9, 1]
    assert count(job, "cache_evictions_total") == 2


def test_a_job_that_was_handed_back():
    """All that the attempt of a replica that was shut down took is useful where the next one goes on; none is lost."""
    job = reported(claimed(ranks=1), 4.0, 2, kept=2)
    job = lifecycle.hand_back(job, 1, 1, 5.0)
    job = reported(claimed(job, 7.0, ranks=1), 8.0, 3, resumed_at=2)
    job = lifecycle.succeed(job, 2, {}, 10.0)
    assert count(job, "attempts_ended_total", "handed_back") == 1
    assert count(job, "recovery_seconds_total") is None
    assert count(job, "useful_worker_seconds_total") == 3.0 + 3.0
    assert count(job, "wasted_worker_seconds_total", "handed_back") == 0
    assert count(job, "steps_resumed_total") == 2
