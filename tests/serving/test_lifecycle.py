"""Every transition of a job, allowed or not."""

from dataclasses import replace

import pytest

from warpcache_ray.errors import Cancelled, DeadlineExceeded, GenerationFailed
from warpcache_ray.serving import lifecycle
from warpcache_ray.serving.lifecycle import (
    PRIVATE,
    TERMINAL,
    Job,
    Order,
    Progress,
    StaleFence,
    Status,
)

QUEUED = Job("job_1", {"prompt": "a"}, {"name": "never"}, created_at=1.0)
RUNNING = lifecycle.claim(QUEUED, "replica_1", 0, 2.0)
CANCELLED = Cancelled("cancelled")
FAILURE = GenerationFailed("no").to_dict()

MOVES = {
    "claim": lambda job, fence: lifecycle.claim(job, "replica_2", 0, 9.0),
    "report": lambda job, fence: lifecycle.report(job, fence, Progress(3, 4, {"hits": 1}), 9.0),
    "succeed": lambda job, fence: lifecycle.succeed(job, fence, {"path": "/v"}, 9.0),
    "fail": lambda job, fence: lifecycle.fail(job, fence, FAILURE, 9.0),
    "lose": lambda job, fence: lifecycle.lose(job, fence, 2, 7, 9.0),
}
ALLOWED = {
    ("claim", Status.QUEUED): Status.RUNNING,
    ("report", Status.RUNNING): Status.RUNNING,
    ("succeed", Status.RUNNING): Status.SUCCEEDED,
    ("fail", Status.RUNNING): Status.FAILED,
    ("lose", Status.RUNNING): Status.QUEUED,
}
REPEATED = {
    ("succeed", Status.SUCCEEDED),
    ("fail", Status.FAILED),
    ("fail", Status.CANCELLED),
}
FORBIDDEN = [(m, s) for m in MOVES for s in Status if (m, s) not in {*ALLOWED, *REPEATED}]


@pytest.mark.parametrize(("move", "status"), ALLOWED)
def test_allowed(move, status):
    """Each allowed move leads where the table says, and leaves the old record as it was."""
    job = QUEUED if status is Status.QUEUED else RUNNING
    before = replace(job)
    assert MOVES[move](job, job.fence).status is ALLOWED[move, status]
    assert job == before


@pytest.mark.parametrize(("move", "status"), sorted(REPEATED))
def test_an_end_that_is_told_twice(move, status):
    """The answer to the first may have been lost: the job stays as it is, and whoever tells keeps what it has made. An
    older attempt is stale all the same."""
    job = replace(RUNNING, status=status)
    assert MOVES[move](job, RUNNING.fence) is job
    with pytest.raises(StaleFence):
        MOVES[move](job, RUNNING.fence - 1)


@pytest.mark.parametrize(("move", "status"), FORBIDDEN)
def test_forbidden(move, status):
    """Everything else is refused as stale."""
    with pytest.raises(StaleFence):
        MOVES[move](replace(RUNNING, status=status), RUNNING.fence)


@pytest.mark.parametrize("fence", [0, 2])
@pytest.mark.parametrize("move", ["report", "succeed", "fail", "lose"])
def test_other_fences_are_stale(move, fence):
    """Neither an older attempt nor one that never was can change a running job."""
    with pytest.raises(StaleFence, match=rf"job_1: fence {fence}, the job is running at 1"):
        MOVES[move](RUNNING, fence)


@pytest.mark.parametrize("status", sorted(TERMINAL))
def test_ended_jobs_ignore_cancellation(status):
    """A terminal state isn't left, also not by DELETE."""
    job = replace(RUNNING, status=status)
    assert job.ended
    assert lifecycle.request_end(job, CANCELLED, 9.0) == job
    assert lifecycle.invalidate(job, 9) == job


def test_claim_begins_a_new_attempt():
    """Each claim raises the fence, names the replica and starts the steps anew."""
    again = lifecycle.claim(
        lifecycle.lose(replace(RUNNING, step=3), RUNNING.fence, 2, 7, 4.0), "replica_2", 0, 5.0
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
    job = lifecycle.request_end(QUEUED, CANCELLED, 9.0)
    assert (job.status, job.finished_at, job.error["code"]) == ("cancelled", 9.0, "cancelled")


def test_running_is_marked_and_ends_by_its_replica():
    """A running job keeps running until its replica says that it was cancelled."""
    marked = lifecycle.request_end(RUNNING, CANCELLED, 8.0)
    assert (marked.status, marked.ending_at) == (Status.RUNNING, 8.0)
    assert lifecycle.fail(marked, 1, Cancelled("x").to_dict(), 9.0).status is Status.CANCELLED


def test_a_job_ends_for_the_reason_that_was_given_first():
    """Over its deadline and cancelled later: it has failed for the deadline; a failure of its own stays one."""
    late = lifecycle.request_end(RUNNING, DeadlineExceeded("late"), 8.0)
    assert lifecycle.request_end(late, CANCELLED, 9.0) == late
    ended = lifecycle.fail(late, 1, Cancelled("after step 3").to_dict(), 9.0)
    assert (ended.status, ended.error["code"]) == (Status.FAILED, "deadline_exceeded")
    assert lifecycle.fail(late, 1, FAILURE, 9.0).error == FAILURE


def test_epochs_of_model_and_job():
    """The newer one counts; a lost attempt and an invalidation raise the job's own."""
    assert lifecycle.claim(QUEUED, "r", 3, 2.0).epoch == 3
    raised = lifecycle.invalidate(RUNNING, 5)
    assert lifecycle.order(raised, 1, 4) == Order(5)
    assert lifecycle.order(raised, 1, 6) == Order(6)
    assert lifecycle.lose(raised, 1, 2, 8, 4.0).epoch == 8


@pytest.mark.parametrize(
    "job",
    [
        lifecycle.request_end(RUNNING, CANCELLED, 3.0),
        lifecycle.lose(RUNNING, 1, 2, 7, 3.0),
        lifecycle.succeed(RUNNING, 1, {}, 3.0),
        replace(RUNNING, fence=2),
    ],
    ids=["told to end", "lost", "ended", "of a newer attempt"],
)
def test_an_attempt_is_to_end(job):
    """Whatever became of its job, unless it is the current attempt of a job that is wanted."""
    assert lifecycle.order(job, 1, 0).cancel
    assert not lifecycle.order(RUNNING, 1, 0).cancel


def test_the_next_attempt_knows_the_last_checkpoint():
    """It outlives reports without one, and the attempt that made it."""
    job = lifecycle.report(RUNNING, 1, Progress(2, 4, checkpoint_step=2), 3.0)
    job = lifecycle.report(job, 1, Progress(3, 4), 4.0)
    assert lifecycle.claim(lifecycle.lose(job, 1, 2, 7, 5.0), "r", 0, 6.0).checkpoint_step == 2


def test_lost_until_the_attempts_are_used_up():
    """Two attempts: the first loss queues the job, the second fails it as worker_lost, retryable."""
    queued = lifecycle.lose(RUNNING, RUNNING.fence, 2, 7, 3.0)
    claimed = lifecycle.claim(queued, "replica_2", 0, 4.0)
    failed = lifecycle.lose(claimed, claimed.fence, 2, 8, 5.0)
    assert (queued.status, queued.replica, queued.error) == (Status.QUEUED, None, None)
    assert (failed.status, failed.finished_at) == (Status.FAILED, 5.0)
    assert (failed.error["code"], failed.error["retryable"]) == ("worker_lost", True)
    assert "2 of 2" in failed.error["message"]


def test_lost_while_being_cancelled_is_cancelled():
    """A job that nobody wants any more gets no second attempt."""
    marked = lifecycle.request_end(RUNNING, CANCELLED, 3.0)
    assert lifecycle.lose(marked, RUNNING.fence, 9, 7, 4.0).status is Status.CANCELLED


def test_record_keeps_the_path_inside():
    """What leaves the service tells all but the place on disk and the bookkeeping."""
    record = lifecycle.succeed(RUNNING, 1, {"path": "/v", "bytes": 7}, 9.0).to_dict()
    assert record["result"] == {"bytes": 7}
    assert not set(PRIVATE) & set(record)
    assert (record["id"], record["status"], record["progress"]) == ("job_1", "succeeded", 1.0)


@pytest.mark.parametrize("over", ["succeed", "fail", "cancel"])
def test_a_look_does_not_touch_a_policys_measurements(over, monkeypatch):
    """They may be thousands of numbers: summary and version are made once, stay the same through the job's life, and
    are all that is kept after its end."""
    gram = {"products": [0.125] * 5000}
    job = Job("job_1", {"prompt": "a"}, {"name": "auto", "max_calls": 4, "gram": gram}, 1.0)
    first = job.to_dict()
    monkeypatch.setattr(lifecycle, "summarize_policy", None)
    monkeypatch.setattr(lifecycle, "digest", None)
    copied = []
    monkeypatch.setattr("copy.deepcopy", lambda value, *_: copied.append(value) or value)
    running = lifecycle.claim(job, "replica_1", 0, 2.0)
    assert running.stored()["policy"] is running.policy is job.policy
    ended = {
        "succeed": lambda: lifecycle.succeed(running, 1, {"path": "/v"}, 3.0),
        "fail": lambda: lifecycle.fail(running, 1, FAILURE, 3.0),
        "cancel": lambda: lifecycle.request_end(job, CANCELLED, 3.0),
    }[over]()
    for record in (running.to_dict(), ended.to_dict()):
        assert record["policy"] == first["policy"]
        assert record["policy_version"] == first["policy_version"]
    assert ended.policy == first["policy"]
    assert 0.125 not in copied
    assert len(str(ended.stored())) < 2000


def test_the_record_names_the_policy_by_its_content():
    """Another measurement is another version, the same content the same one."""
    versions = [
        Job("job_1", {}, {"name": "auto", "gram": {"products": [value]}}, 1.0).to_dict()
        for value in (1.0, 1.0, 2.0)
    ]
    first, again, other = (record["policy_version"] for record in versions)
    assert first == again != other
