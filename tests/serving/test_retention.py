"""Which ended jobs go: by age, and by who has most."""

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from warpcache_ray.serving.lifecycle import Job
from warpcache_ray.serving.retention import forgettable


def ended(client: str, at: float) -> Job:
    return Job(f"{client}_{at}", {}, {"name": "never"}, 0.0, client, finished_at=at)


def names(jobs: list[Job]) -> list[str]:
    return [job.id for job in jobs]


def test_a_flood_costs_nobody_else_a_video():
    """Bob's only job is the oldest of all, and stays; the flood's own oldest go."""
    flood = [ended("alice", float(at)) for at in range(2, 8)]
    assert names(forgettable([ended("bob", 1.0), *flood], 0.0, 3)) == names(flood[:4])


def test_what_is_too_old_goes_whoseever_it_is():
    """It makes room, so that nothing else has to go."""
    jobs = [ended("bob", 1.0), *(ended("alice", float(at)) for at in range(2, 5))]
    assert names(forgettable(jobs, 2.0, 3)) == ["bob_1.0"]


def test_of_equals_the_oldest_goes():
    """As many each: by time."""
    jobs = [ended("b", 1.0), ended("a", 2.0), ended("b", 3.0), ended("a", 4.0)]
    assert names(forgettable(jobs, 0.0, 2)) == ["b_1.0", "a_2.0"]


@settings(deadline=None)
@given(
    jobs=st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 99)), unique=True),
    since=st.integers(0, 99),
    most=st.integers(1, 30),
)
def test_nobody_loses_to_one_who_has_more(jobs, since, most):
    """No more than allowed are left, and none goes without need; who lost one in time has no less left than anyone, but
    for the one that it lost last; of each client the newest are left."""
    records = [ended(client, float(at)) for client, at in jobs]
    gone = set(names(forgettable(records, float(since), most)))
    fresh = [job for job in records if (job.finished_at or 0.0) >= since]
    left = [job for job in fresh if job.id not in gone]
    assert {job.id for job in records} - {job.id for job in fresh} <= gone
    assert len(left) == min(len(fresh), most)
    counts = Counter(job.client for job in left)
    for job in fresh:
        if job.id in gone:
            assert counts[job.client] >= max(counts.values()) - 1
            mine = [other.finished_at for other in left if other.client == job.client]
            assert all(other > job.finished_at for other in mine)
