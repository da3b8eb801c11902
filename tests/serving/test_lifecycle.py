"""Every transition of a job, allowed or not."""

from dataclasses import replace

import pytest

from warpcache_ray.errors import Cancelled, GenerationFailed
from warpcache_ray.serving import lifecycle
from warpcache_ray.serving.lifecycle import TERMINAL, Job, StaleFence, Status

QUEUED = Job("job_1", {"prompt": "a"}, {"name": "never"}, created_at=1.0)
RUNNING = lifecycle.claim(QUEUED, "replica_1", 2.0)
FAILURE = GenerationFailed("no").to_dict()

MOVES = {
    "claim": lambda job, fence: lifecycle.claim(job, "replica_2", 9.0),
    "report": lambda job, fence: lifecycle.report(job, fence, 3, 4, {"hits": 1}, 9.0),
    "succeed": lambda job, fence: lifecycle.succeed(job, fence, {"path": "/v"}, 9.0),
    "fail": lambda job, fence: lifecycle.fail(job, fence, FAILURE, 9.0),
    "lose": lambda job, fence: lifecycle.lose(job, fence, 2, 9.0),
}
ALLOWED = {
    ("claim", Status.QUEUED): Status.RUNNING,
    ("report", Status.RUNNING): Status.RUNNING,
    ("succeed", Status.RUNNING): Status.SUCCEEDED,
    ("fail", Status.RUNNING): Status.FAILED,
    ("lose", Status.RUNNING): Status.QUEUED,
}
FORBIDDEN = [(m, s) for m in MOVES for s in Status if (m, s) not in ALLOWED]


@pytest.mark.parametrize(("move", "status"), ALLOWED)
def test_allowed(move, status):
    """Each allowed move leads where the table says, and leaves the old record as it was."""
    job = QUEUED if status is Status.QUEUED else RUNNING
    before = replace(job)
    assert MOVES[move](job, job.fence).status is ALLOWED[move, status]
    assert job == before


@pytest.mark.parametrize(("move", "status"), FORBIDDEN)
def test_forbidden(move, status):
    """Everything else is refused: for those who speak by fence as stale, for the coordinator itself as a bug."""
    refusal = AssertionError if move == "claim" else StaleFence
    with pytest.raises(refusal):
        MOVES[move](replace(RUNNING, status=status), RUNNING.fence)


@pytest.mark.parametrize("fence", [0, 2])
@pytest.mark.parametrize("move", ["report", "succeed", "fail", "lose"])
def test_other_fences_are_stale(move, fence):
    """Neither an older attempt nor one that never was can change a running job."""
    with pytest.raises(StaleFence, match=rf"job_1: fence {fence}, the job is running at 1"):
        MOVES[move](RUNNING, fence)


@pytest.mark.parametrize("status", TERMINAL)
def test_ended_jobs_ignore_cancellation(status):
    """A terminal state isn't left, also not by DELETE."""
    job = replace(RUNNING, status=status)
    assert job.ended
    assert lifecycle.request_cancel(job, 9.0) == job


def test_claim_begins_a_new_attempt():
    """Each claim raises the fence, names the replica and starts the steps anew."""
    again = lifecycle.claim(
        lifecycle.lose(replace(RUNNING, step=3), RUNNING.fence, 2, 4.0), "replica_2", 5.0
    )
    assert (RUNNING.fence, again.fence) == (1, 2)
    assert (again.replica, again.step, again.started_at, again.seen_at) == (
        "replica_2",
        0,
        5.0,
        5.0,
    )


def test_report_renews_the_lease_and_tells_progress():
    """Step, total, cache summary and time of the report stand in the record."""
    job = MOVES["report"](RUNNING, 1)
    assert (job.step, job.total_steps, job.cache, job.seen_at) == (3, 4, {"hits": 1}, 9.0)
    assert (QUEUED.progress, job.progress, MOVES["succeed"](job, 1).progress) == (0.0, 0.75, 1.0)


def test_queued_is_cancelled_at_once():
    """Without a replica there is nobody to wait for."""
    job = lifecycle.request_cancel(QUEUED, 9.0)
    assert (job.status, job.finished_at, job.error["code"]) == ("cancelled", 9.0, "cancelled")


def test_running_is_marked_and_ends_by_its_replica():
    """A running job keeps running until its replica says that it was cancelled."""
    marked = lifecycle.request_cancel(RUNNING, 8.0)
    assert (marked.status, marked.cancel_requested) == (Status.RUNNING, True)
    assert lifecycle.fail(marked, 1, Cancelled("x").to_dict(), 9.0).status is Status.CANCELLED


def test_lost_until_the_attempts_are_used_up():
    """Two attempts: the first loss queues the job, the second fails it as worker_lost, retryable."""
    queued = lifecycle.lose(RUNNING, RUNNING.fence, 2, 3.0)
    claimed = lifecycle.claim(queued, "replica_2", 4.0)
    failed = lifecycle.lose(claimed, claimed.fence, 2, 5.0)
    assert (queued.status, queued.replica, queued.error) == (Status.QUEUED, None, None)
    assert (failed.status, failed.finished_at) == (Status.FAILED, 5.0)
    assert (failed.error["code"], failed.error["retryable"]) == ("worker_lost", True)
    assert "2 of 2" in failed.error["message"]


def test_lost_while_being_cancelled_is_cancelled():
    """A job that nobody wants any more gets no second attempt."""
    assert (
        lifecycle.lose(lifecycle.request_cancel(RUNNING, 3.0), RUNNING.fence, 9, 4.0).status
        is Status.CANCELLED
    )


def test_record_keeps_the_path_inside():
    """What leaves the service tells all but the place on disk and the bookkeeping."""
    record = lifecycle.succeed(RUNNING, 1, {"path": "/v", "bytes": 7}, 9.0).to_dict()
    assert record["result"] == {"bytes": 7}
    assert not {"seen_at", "cancel_requested"} & set(record)
    assert (record["id"], record["status"], record["progress"]) == ("job_1", "succeeded", 1.0)
