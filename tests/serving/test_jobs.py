"""The jobs in memory: indexes that agree with the records, and what counts as a change of the order."""

import random
import uuid
from dataclasses import replace

import pytest

from warpcache_ray.errors import IdempotencyConflict
from warpcache_ray.serving import admission, lifecycle
from warpcache_ray.serving.admission import Rates
from warpcache_ray.serving.attempts import Progress
from warpcache_ray.serving.jobs import Jobs
from warpcache_ray.serving.lifecycle import Job, Once, Status
from warpcache_ray.serving.line import Line
from warpcache_ray.store.connection import connect
from warpcache_ray.store.jobs import JobStore


@pytest.fixture
async def jobs(store_server) -> Jobs:
    return Jobs(JobStore(connect(store_server.url), uuid.uuid4().hex), lambda job: None)


def job(name: str, at: float = 1.0) -> Job:
    return Job(name, {"prompt": "a"}, {"name": "never"}, at, "a")


def _moves(of: Job) -> list:
    """The transitions that are open to a job."""
    if of.status is Status.QUEUED:
        return [
            lambda j: lifecycle.claim(j, "replica_1", 0, 2.0),
            lambda j: lifecycle.request_end(j, lifecycle.Cancelled("x"), 3.0),
        ]
    if of.status is Status.RUNNING:
        return [
            lambda j: lifecycle.report(j, j.fence, Progress(1, 4), 2.5),
            lambda j: lifecycle.succeed(j, j.fence, {}, 3.0),
            lambda j: lifecycle.lose(j, j.fence, 2, 1, 3.0),
            lambda j: lifecycle.hand_back(j, j.fence, 1, 3.0),
        ]
    return [lambda j: replace(j, removed=True)]


async def test_indexes_agree_with_the_records(jobs):
    """Over 300 random changes: counts, lists by status and keys are what the records say, also after a restart."""
    draw = random.Random(0)
    for number in range(300):
        known = list(jobs)
        if len(known) < 3 or draw.random() < 0.2:
            once = Once("a", f"key_{draw.randrange(40)}", "asked")
            await jobs.add(job(f"job_{number}", float(number)), 999, once)
        elif draw.random() < 0.1:
            await jobs.remove(draw.choice(known).id)
        elif not (chosen := draw.choice(known)).removed:
            await jobs.change(chosen.id, draw.choice(_moves(chosen)))
        _check(jobs)
    fresh = Jobs(jobs.store, lambda job: None)
    await fresh.load()
    _check(fresh)
    assert {j.id for j in fresh} == {j.id for j in jobs}


def _check(jobs: Jobs) -> None:
    records = list(jobs)
    for status in Status:
        there = {j.id for j in records if j.status is status}
        assert {j.id for j in jobs.having(status)} == there
        assert jobs.count(status) == len(there)
    assert {j.id for j in jobs.active} == {j.id for j in records if not j.ended}
    for record in records:
        if record.key is not None and not record.removed:
            assert jobs.known(Once("a", record.key, "asked")) == record
            with pytest.raises(IdempotencyConflict):
                jobs.known(Once("a", record.key, "something else"))


async def test_the_order_is_computed_anew_when_it_may_have_changed(jobs, monkeypatch):
    """Not for progress; for jobs that come, are claimed or go, for what jobs took, and for other weights."""
    computed = []
    order = admission.order
    monkeypatch.setattr(admission, "order", lambda *of: computed.append(of) or order(*of))
    line, rates = Line(), Rates()
    for name in ("job_1", "job_2"):
        await jobs.add(job(name), 9)
    await jobs.change("job_1", lambda j: lifecycle.claim(j, "replica_1", 0, 2.0))

    def looks(weights: dict[str, float]) -> int:
        assert [turn.job.id for turn in line.turns(jobs, rates, weights)] == waiting
        return len(computed)

    waiting = ["job_2"]
    assert (looks({}), looks({})) == (1, 1)
    await jobs.note("job_1", lambda j: lifecycle.report(j, 1, Progress(1, 4), 2.5))
    assert looks({}) == 1
    assert looks({"a": 2.0}) == 2
    ended = await jobs.change("job_1", lambda j: lifecycle.succeed(j, 1, {}, 3.0))
    assert looks({}) == 3
    rates.saw(ended)
    assert looks({}) == 4
    await jobs.remove("job_1")
    assert looks({}) == 5
    await jobs.add(job("job_3", 5.0), 9)
    waiting = ["job_2", "job_3"]
    assert looks({}) == 6
