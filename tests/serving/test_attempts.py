"""What the record of an attempt tells, from its claim to its end."""

import json
from dataclasses import asdict, replace

import pytest
from hubs import totals

from warpcache_ray.errors import Cancelled, GenerationFailed
from warpcache_ray.serving import lifecycle
from warpcache_ray.serving.attempts import Attempt, End, Progress, together, useful_shares
from warpcache_ray.serving.lifecycle import Job

QUEUED = Job("job_1", {"prompt": "a"}, {"name": "never"}, created_at=1.0)
RUNNING = lifecycle.claim(QUEUED, "replica_1", 3, 5.0, ranks=2)
CANCELLED = Cancelled("cancelled")
OUT_OF_LUCK = GenerationFailed("no").to_dict()


def told(step, **more):
    """A report as the coordinator takes it."""
    return Progress.told(totals(step, **more))


def made(end, resumed_at, step, error=None):
    """An ended attempt that made the steps from one to another."""
    begun = Attempt(1, "r", 1, 0, 0.0, started_at=0.0, seen_at=0.0)
    return replace(begun, resumed_at=resumed_at, step=step).over(end, 10.0, error)


def lost(resumed_at, step):
    return made(End.LOST, resumed_at, step, "worker_lost")


def test_a_claim_opens_one():
    """By whom, with how many ranks, in which epoch, after how long a wait."""
    (attempt,) = RUNNING.attempts
    assert (attempt.fence, attempt.replica, attempt.ranks, attempt.epoch) == (1, "replica_1", 2, 3)
    assert (attempt.waited_s, attempt.started_at, attempt.end) == (4.0, 5.0, None)
    assert attempt.worker_seconds == 0


def test_reports_are_its_progress():
    """The newest one counts, an older one that comes late only renews the lease; the first step has its time."""
    job = lifecycle.report(RUNNING, 1, told(0), 6.0)
    assert job.attempts[0].first_step_at is None
    for at, step in ((7.0, 1), (8.0, 3), (9.0, 2)):
        job = lifecycle.report(job, 1, told(step, hits=step, kept=step), at)
    (attempt,) = job.attempts
    assert (attempt.step, attempt.first_step_at, job.seen_at) == (3, 7.0, 9.0)
    assert (attempt.checkpoint_step, attempt.checkpoints, attempt.drifts) == (3, 1, 1)
    assert attempt.decisions == {"cond": {"recompute": 1, "reuse": 3}}
    assert job.cache == attempt.cache == told(3, hits=3).cache


@pytest.mark.parametrize(
    ("transition", "end", "error"),
    [
        (lambda job: lifecycle.succeed(job, 1, {}, 9.0), "succeeded", None),
        (lambda job: lifecycle.fail(job, 1, OUT_OF_LUCK, 9.0), "failed", "generation_failed"),
        (lambda job: lifecycle.fail(job, 1, CANCELLED.to_dict(), 9.0), "cancelled", "cancelled"),
        (lambda job: lifecycle.lose(job, 1, 2, 7, 9.0), "lost", "worker_lost"),
        (lambda job: lifecycle.lose(job, 1, 1, 7, 9.0), "lost", "worker_lost"),
        (
            lambda job: lifecycle.lose(lifecycle.request_end(job, CANCELLED, 8.0), 1, 2, 7, 9.0),
            "lost",
            "worker_lost",
        ),
    ],
    ids=["succeeded", "failed", "cancelled", "lost", "lost for good", "lost while being cancelled"],
)
def test_each_end_is_told(transition, end, error):
    """How, when, by which error; what it took counts for each rank, and its cache holds nothing more."""
    job = transition(lifecycle.report(RUNNING, 1, told(2), 6.0))
    (attempt,) = job.attempts
    assert (attempt.end, attempt.error, attempt.ended_at) == (end, error, 9.0)
    assert (attempt.worker_seconds, attempt.cache_bytes) == (8.0, 0)


def test_a_published_one_has_its_stages():
    """As its result tells them."""
    timings = {"text": 0.5, "denoise": 2.0}
    assert lifecycle.succeed(RUNNING, 1, {"timings": timings}, 9.0).attempts[0].timings == timings


def test_the_record_has_all_the_newest_last():
    """In public, and read back from the store's JSON."""
    job = lifecycle.lose(lifecycle.report(RUNNING, 1, told(3), 6.0), 1, 3, 7, 8.0)
    job = lifecycle.succeed(lifecycle.claim(job, "replica_2", 0, 10.0), 2, {}, 11.0)
    assert [(a["fence"], a["end"]) for a in job.to_dict()["attempts"]] == [
        (1, "lost"),
        (2, "succeeded"),
    ]
    assert job.to_dict()["attempts"][0]["worker_seconds"] == 6.0
    stored = json.loads(json.dumps(asdict(job)))
    assert tuple(map(Attempt.read, stored["attempts"])) == job.attempts


def test_a_job_that_waits_has_none_to_end():
    """Cancelled in the queue, before its first attempt and after a lost one."""
    assert lifecycle.request_end(QUEUED, CANCELLED, 9.0).attempts == ()
    given_back = lifecycle.lose(RUNNING, 1, 2, 7, 8.0)
    assert lifecycle.request_end(given_back, CANCELLED, 9.0).attempts == given_back.attempts


@pytest.mark.parametrize(
    ("attempts", "shares"),
    [
        ([], []),
        ([made(End.SUCCEEDED, 0, 50)], [1.0]),
        ([made(End.FAILED, 0, 7, "oom")], [0.0]),
        ([lost(0, 40), made(End.SUCCEEDED, 0, 50)], [0.0, 1.0]),
        ([lost(0, 40), made(End.SUCCEEDED, 30, 50)], [0.75, 1.0]),
        ([lost(0, 40), lost(30, 50), made(End.SUCCEEDED, 40, 50)], [0.75, 0.5, 1.0]),
        ([lost(0, 40), lost(30, 35), made(End.SUCCEEDED, 30, 50)], [0.75, 0.0, 1.0]),
        ([lost(0, 40), lost(0, 3), made(End.SUCCEEDED, 30, 50)], [0.75, 0.0, 1.0]),
        ([lost(0, 40), made(End.CANCELLED, 30, 50, "cancelled")], [0.0, 0.0]),
        ([lost(0, 0), made(End.SUCCEEDED, 0, 50)], [0.0, 1.0]),
    ],
    ids=[
        "none", "whole", "failed", "from the start", "resumed", "resumed twice", "nothing new kept",
        "a short one between", "in vain", "lost at once",
    ],
)  # fmt: skip
def test_steps_that_others_went_on_from_are_useful(attempts, shares):
    """Of each lost attempt those up to the checkpoint; all of the one that published; none without a video."""
    assert useful_shares(attempts) == shares


def test_a_report_of_several_ranks():
    """The first one decides; caches are summed, of memories the largest is named, whether all have begun or not."""
    ranks = [
        totals(2, hits=2)
        | {"summary": {"reused": 2, "peak_cache_bytes": c, "peak_memory_bytes": m}}
        for c, m in ((4, 30), (6, 50))
    ]
    report = together([*ranks, totals(0) | {"summary": {}, "cache_bytes": 0}])
    assert report["summary"] == {"reused": 2, "peak_cache_bytes": 10, "peak_memory_bytes": 50}
    assert (report["step"], report["cache_bytes"]) == (2, 16)
    assert together([totals(0) | {"summary": {}}])["summary"] == {}
    assert ranks[0]["summary"]["peak_cache_bytes"] == 4
