"""Costs, order and answers, as pure functions: closed cases, and a service simulated in whole seconds of its own."""

from __future__ import annotations

import heapq
import random
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from warpcache_ray.errors import AttemptTimeout, Cancelled, DeadlineExceeded, QueueTimeout
from warpcache_ray.serving import admission, lifecycle
from warpcache_ray.serving.admission import FIRST_RATE, KEPT, PATIENCE, PRIORITIES, Rates
from warpcache_ray.serving.lifecycle import Job, Progress, Status

NEVER = {"name": "never"}
RATES = Rates({"never": deque([1.0])})
"""A frame takes a second."""


class Arrival(NamedTuple):
    """A job to be."""

    at: float
    client: str = "a"
    cost: int = 1
    priority: str = "normal"

    def job(self, index: int, busy_since: float = 0.0) -> Job:
        request = {"num_frames": self.cost, "priority": self.priority}
        name = f"job_{index:04}"
        return Job(name, request, NEVER, self.at, self.client, busy_since=busy_since)


class Handed(NamedTuple):
    """A job that a replica took, and whose jobs waited then, its own among them."""

    job: Job
    waiting: set[str]


def queue(*arrivals: Arrival) -> list[Job]:
    """Waiting jobs, in the order of their submission."""
    return [arrival.job(index) for index, arrival in enumerate(arrivals)]


def clients(jobs: Iterable[Job], weights: dict[str, float] | None = None) -> str:
    """Whose job is when, a letter each."""
    return "".join(t.job.client for t in admission.order(jobs, RATES.cost, weights or {}))


def serve(
    arrivals: Iterable[Arrival], replicas: int = 1, weights: dict[str, float] | None = None
) -> list[Handed]:
    """What replicas that are never idle without need take, by `order`; each job takes its cost."""
    coming = deque(sorted(arrivals))
    jobs: dict[str, Job] = {}
    ends: list[tuple[float, str]] = []
    handed = []
    while coming or ends:
        now = min([arrival.at for arrival in list(coming)[:1]] + [at for at, _ in ends[:1]])
        while ends and ends[0][0] == now:
            job_id = heapq.heappop(ends)[1]
            jobs[job_id] = lifecycle.succeed(jobs[job_id], 1, {}, now)
        while coming and coming[0].at == now:
            arrival = coming.popleft()
            since = admission.busy_since(
                [j for j in jobs.values() if not j.ended], arrival.priority, now
            )
            job = arrival.job(len(jobs), since)
            jobs[job.id] = job
        while len(ends) < replicas:
            turns = list(admission.order(jobs.values(), RATES.cost, weights or {}))
            if not turns:
                break
            claimed = claim(turns[0], now)
            handed.append((claimed.id, {turn.job.client for turn in turns}))
            jobs[claimed.id] = claimed
            heapq.heappush(ends, (now + RATES.cost(claimed), claimed.id))
    return [Handed(jobs[job_id], waiting) for job_id, waiting in handed]


def claim(turn: admission.Turn, now: float) -> Job:
    """As the coordinator does it."""
    claimed = lifecycle.claim(turn.job, "replica_1", 0, now)
    return replace(claimed, virtual_start=turn.start, virtual_finish=turn.finish)


_times, _costs = st.integers(0, 30), st.integers(1, 9)
ARRIVALS = st.lists(
    st.builds(Arrival, _times, st.sampled_from("abc"), _costs, st.sampled_from(PRIORITIES)),
    max_size=40,
)
ONE_CLASS = st.lists(
    st.builds(Arrival, _times, st.sampled_from("ab"), _costs, st.just("normal")),
    min_size=10,
    max_size=40,
)
WEIGHTS = st.fixed_dictionaries({}, optional={c: st.sampled_from([0.5, 2.0, 4.0]) for c in "abc"})


@pytest.mark.parametrize(
    ("policy", "share"),
    [
        (NEVER, 1.0),
        ({"name": "auto", "max_calls": 10}, 0.25),
        ({"name": "auto", "max_calls": 99}, 1.0),
        ({"name": "auto", "max_calls": None}, admission.DEFAULT_SHARE),
        ({"name": "worldcache"}, admission.USUAL_SHARE),
    ],
)
def test_work_is_the_calls_that_are_made(policy, share):
    """Pixels of all frames, times the policy's share of 40 steps."""
    request = {"height": 16, "width": 32, "num_frames": 5, "num_inference_steps": 40}
    job = Job("job_1", request, policy, 0.0)
    assert admission.work(job) == 16 * 32 * 5 * 40 * share


def ended(took: float, at: float = 0.0, name: str = "never", frames: int = 1) -> Job:
    """A success that took so long for so many frames."""
    job = lifecycle.claim(Job("job_1", {"num_frames": frames}, {"name": name}, 0.0), "r", 0, at)
    return lifecycle.succeed(job, 1, {}, at + took)


def test_costs_follow_what_jobs_took():
    """Seconds per unit by policy; a policy without a job that ended has all others', and before that a guess."""
    rates, job = Rates(), Job("job_1", {"num_frames": 10}, NEVER, 0.0)
    assert (rates.known, rates.cost(job)) == (False, 10 * FIRST_RATE)
    rates.saw(ended(6.0, name="worldcache", frames=4))
    assert (rates.known, rates.cost(job)) == (True, 10 * 6.0 / (4 * admission.USUAL_SHARE))
    rates.saw(ended(8.0, frames=4))
    assert rates.cost(job) == 20.0


def test_one_slow_job_does_not_count_and_old_ones_are_forgotten():
    """The median isn't moved by a job of a thousand times the others' length; as many new jobs replace all old ones."""
    rates, job = Rates(), Job("job_1", {}, NEVER, 0.0)
    for took in (1.0, 1000.0, 1.0):
        rates.saw(ended(took))
    assert rates.cost(job) == 1.0
    for _ in range(KEPT):
        rates.saw(ended(3.0))
    assert rates.seen["never"] == deque([3.0] * KEPT)


def test_only_whole_attempts_teach():
    """Cancelled, failed and lost ones say nothing of what a whole one takes, nor does one after a loss."""
    running = lifecycle.claim(Job("job_1", {}, NEVER, 0.0), "r", 0, 1.0)
    lost = lifecycle.lose(running, 1, 3, 1, 5.0)
    again = lifecycle.claim(lost, "r", 1, 6.0)
    cancelled = lifecycle.fail(running, 1, Cancelled("x").to_dict(), 9.0)
    rates = Rates()
    for job in (running, lost, again, cancelled, lifecycle.succeed(again, 2, {}, 7.0)):
        rates.saw(job)
    assert not rates.known


def test_rates_are_rebuilt_from_the_records():
    """In whatever order these come, a new coordinator knows what the old one had learnt."""
    jobs = [ended(took=1.0 + index % 5, at=10.0 * index) for index in range(3 * KEPT)]
    online = Rates()
    for job in jobs:
        online.saw(job)
    random.Random(0).shuffle(jobs)
    assert Rates.of(jobs) == online


def test_classes_go_by_priority():
    """Whoever came first."""
    jobs = queue(*(Arrival(0.0, p, priority=p) for p in ("low", "normal", "high")))
    order = [turn.job.client for turn in admission.order(jobs, RATES.cost, {})]
    assert order == ["high", "normal", "low"]


def test_a_class_that_was_passed_over_has_a_turn():
    """Every ninth job is of the lower class, while the higher one has enough."""
    flood = [Arrival(0.0, "h", priority="high")] * 2 * PATIENCE
    jobs = queue(*flood, *[Arrival(0.0, "l", priority="low")] * 3)
    assert clients(jobs) == ("h" * PATIENCE + "l") * 2 + "l"


def test_a_steady_stream_above_starves_nobody():
    """While more urgent jobs come than can be made, each of two low ones and a normal one waits for a few of them."""
    flood = [Arrival(float(at), "h", priority="high") for at in range(100)]
    lower = [Arrival(0.5, p[0], priority=p) for p in ("low", "normal", "low")]
    order = "".join(h.job.client for h in serve([*flood, *lower]))
    assert order[:30] == "h" * 9 + "ln" + "h" * 7 + "l" + "h" * 11


def test_equal_clients_take_turns_by_cost():
    """Jobs of three seconds against jobs of one: three of these for one of those."""
    jobs = queue(*[Arrival(0.0, "a", 3)] * 3, *[Arrival(0.0, "b", 1)] * 9)
    assert clients(jobs) == "abbbabbbabbb"


def test_weights_are_shares():
    """Twice the weight, twice the jobs."""
    jobs = queue(*[Arrival(0.0, "a")] * 4, *[Arrival(0.0, "b")] * 8)
    assert clients(jobs, {"b": 2.0}) == "abbabbabbabb"


@pytest.mark.parametrize("replicas", [1, 3])
@pytest.mark.parametrize("cost", [1, 100])
def test_a_flood_delays_others_by_one_job_per_replica(replicas, cost):
    """Fifty jobs wait before another client's one; that one is the next to be taken, and waits for what runs only."""
    handed = serve([*[Arrival(0.0, "a", 10)] * 50, Arrival(5.0, "b", cost)], replicas)
    assert "".join(h.job.client for h in handed).index("b") == replicas
    (other,) = [h.job for h in handed if h.job.client == "b"]
    assert other.started_at == 10.0


def test_a_late_client_has_no_credit():
    """One that asked for nothing for a hundred jobs gets its share from then on, not what it left to others."""
    arrivals = [*[Arrival(0.0, "a", 10)] * 105, *[Arrival(995.0, "b", 10)] * 5]
    assert "".join(h.job.client for h in serve(arrivals))[100:] == "ba" * 5


def test_an_earlier_busy_period_is_forgotten():
    """Who had an idle service for itself owes nobody: after a pause clients begin as equals."""
    arrivals = [Arrival(0.0, "a", 500), *[Arrival(1000.0, c, 10) for c in "ab" for _ in range(3)]]
    assert "".join(h.job.client for h in serve(arrivals)) == "aababab"


def test_a_job_that_never_ran_costs_nothing():
    """A client that withdraws its first jobs is as far as if it hadn't sent them."""
    jobs = queue(*[Arrival(0.0, "a", 50)] * 2, Arrival(1.0, "a"), *[Arrival(2.0, "b")] * 2)
    withdrawn = [lifecycle.request_end(job, Cancelled("x"), 3.0) for job in jobs[:2]]
    assert clients([*withdrawn, *jobs[2:]]) == "abb"


def test_a_lost_job_goes_to_the_head_of_its_class():
    """Before all that wait there, also its own client's, but after a higher class; the loss charges nobody."""
    jobs = queue(*[Arrival(0.0, "a", 5)] * 3, *[Arrival(0.0, "b")] * 2)
    taken = next(admission.order(jobs, RATES.cost, {}))
    lost = lifecycle.lose(claim(taken, 1.0), 1, 3, 1, 2.0)
    urgent = Arrival(3.0, "h", priority="high").job(9)
    order = list(admission.order([lost, *jobs[1:], urgent], RATES.cost, {}))
    assert [turn.job.client for turn in order] == ["h", "a", "b", "b", "a", "a"]
    assert order[1] == (lost, taken.start, taken.finish)


@given(ARRIVALS, WEIGHTS)
def test_everyone_has_one_place_and_clients_are_first_in_first_out(arrivals, weights):
    """Each waiting job once; the jobs of a client and class in the order of their submission."""
    jobs = queue(*arrivals)
    order = [turn.job for turn in admission.order(jobs, RATES.cost, weights)]
    assert sorted(job.id for job in order) == [job.id for job in jobs]
    for client in "abc":
        for priority in PRIORITIES:
            own = [j for j in order if (j.client, j.priority) == (client, priority)]
            assert own == sorted(own, key=lambda job: (job.created_at, job.id))


@given(ARRIVALS, st.integers(1, 3), WEIGHTS)
def test_no_replica_is_idle_while_a_job_waits(arrivals, replicas, weights):
    """Work conserving: whenever a job had to wait, all replicas were at work until it was taken."""
    jobs = [handed.job for handed in serve(arrivals, replicas, weights)]
    assert len(jobs) == len(arrivals)
    for job in jobs:
        for at in {other.finished_at for other in jobs} | {job.created_at}:
            if job.created_at <= at < job.started_at:
                assert sum(j.started_at <= at < j.finished_at for j in jobs) == replicas


@given(ONE_CLASS, st.integers(1, 3), WEIGHTS)
def test_shares_differ_by_no_more_than_a_job(arrivals, replicas, weights):
    """While two clients wait, what they were given differs by no more than their largest jobs (the paper's theorem 1),
    each over its client's weight."""
    largest = {c: max((a.cost for a in arrivals if a.client == c), default=0) for c in "ab"}
    bound = sum(largest[c] / weights.get(c, 1.0) for c in "ab")
    lead, seen = 0.0, [0.0]
    for job, waiting in serve(arrivals, replicas, weights):
        if waiting != {"a", "b"}:
            lead, seen = 0.0, [0.0]
            continue
        given_now = RATES.cost(job) / weights.get(job.client, 1.0)
        lead += given_now if job.client == "a" else -given_now
        seen.append(lead)
        assert max(seen) - min(seen) <= bound


def running(cost: int, step: int = 0, fence: int = 1) -> Job:
    """A job that was claimed at 0, and is at a step of 4."""
    claimed = replace(Arrival(0.0, "r", cost).job(99), fence=fence - 1)
    claimed = lifecycle.claim(claimed, "replica_1", 0, 0.0)
    return lifecycle.report(claimed, fence, Progress(step, 4), 0.0) if step else claimed


def outlooks(jobs: list[Job], replicas: int, rates: Rates = RATES) -> list[tuple[Any, Any]]:
    """Position and seconds of each job, at 10."""
    turns = list(admission.order(jobs, rates.cost, {}))
    busy = [job for job in jobs if job.status is Status.RUNNING]
    found = [admission.outlook(job, turns, busy, rates, replicas, 10.0) for job in jobs]
    return [(f["queue_position"], f["eta_s"]) for f in found]


def test_who_waits_is_told_how_long():
    """Two replicas are free in 4 and 30 s: jobs of 6, 25, 1 s end after 10, 35, 31 s; what has ended has no outlook."""
    busy = [replace(running(4), id="job_b"), replace(running(99, step=1), id="job_c")]
    waiting = queue(Arrival(1.0, cost=6), Arrival(2.0, cost=25), Arrival(3.0, cost=1))
    told = outlooks([*busy, *waiting, ended(1.0)], 2)
    assert told == [(None, 4.0), (None, 30.0), (1, 10.0), (2, 35.0), (3, 31.0), (None, None)]


def test_an_idle_replica_takes_the_next_job_at_once():
    """Its end is its own cost away."""
    assert outlooks([running(40), *queue(Arrival(1.0, cost=6))], 2)[1] == (1, 6.0)


def test_nobody_guesses():
    """Without a replica, or before a job has ended, places are told but no times; except for what is under way."""
    waiting = queue(Arrival(0.0), Arrival(1.0))
    assert outlooks(waiting, 0) == [(1, None), (2, None)]
    assert outlooks([running(5), running(5, step=2), *waiting], 1, Rates()) == [
        (None, None), (None, 10.0), (1, None), (2, None)
    ]  # fmt: skip


def test_an_attempt_that_began_in_the_midst_says_nothing_by_its_pace():
    """A quarter in 10 s leaves 30 s; after a loss three quarters of the whole cost."""
    assert admission.remaining(running(400, step=1), RATES.cost, 10.0) == 30.0
    assert admission.remaining(running(400, step=1, fence=2), RATES.cost, 10.0) == 300.0


def test_when_to_come_again():
    """When the first replica is free; unknown without replicas or rates."""
    busy = [running(400, step=2), running(7)]
    assert admission.retry_after_s(busy, RATES, 2, 10.0) == 7.0
    assert admission.retry_after_s(busy, Rates(), 2, 10.0) is None
    assert admission.retry_after_s([], RATES, 0, 10.0) is None


@pytest.mark.parametrize(("at", "code"), [(20.0, None), (20.1, QueueTimeout.code)])
def test_the_end_of_patience(at, code):
    """A job that has waited for longer than the limit fails; a lost one waits since its attempt was last heard of."""
    fresh = Arrival(10.0).job(0)
    claimed = lifecycle.claim(Arrival(0.0).job(1), "r", 0, 10.0)
    for job in (fresh, lifecycle.lose(claimed, 1, 3, 1, 10.0)):
        late = admission.expire(job, 10.0, 1.0, at)
        assert (late.error and late.error["code"]) == code
        assert (late is job) == (code is None)
    assert QueueTimeout.retryable


def test_the_end_of_an_attempt():
    """One over the limit is told to end, and fails for that reason; an earlier reason stands, none without a limit."""
    job = running(5)
    assert admission.expire(job, 1.0, 10.0, 10.0) is job
    assert admission.expire(job, 1.0, None, 99.0) is job
    late = admission.expire(job, 1.0, 10.0, 10.1)
    assert lifecycle.order(late, 1, 0).cancel
    over = lifecycle.fail(late, 1, Cancelled("after step 1").to_dict(), 11.0)
    assert (over.status, over.error["code"]) == (Status.FAILED, AttemptTimeout.code)
    told = lifecycle.request_end(job, DeadlineExceeded("x"), 5.0)
    assert admission.expire(told, 1.0, 10.0, 10.1) is told


def test_a_deadline_goes_before_all_else():
    """A waiting job fails at its time, a running one is told to end; told once, or ended, it stays as it is."""
    asked = {"deadline_s": 10.0}
    waiting = replace(Arrival(0.0).job(0), request=asked, deadline_at=10.0)
    at_work = lifecycle.claim(waiting, "r", 0, 1.0)
    for job in (waiting, at_work):
        assert admission.expire(job, 99.0, None, 10.0) is job
    late = admission.expire(waiting, 1.0, None, 10.1)
    assert (late.status, late.error["code"]) == (Status.FAILED, DeadlineExceeded.code)
    told = admission.expire(at_work, 1.0, 1.0, 10.1)
    assert told.ending["code"] == DeadlineExceeded.code
    for job in (late, told, lifecycle.succeed(at_work, 1, {}, 9.0)):
        assert admission.expire(job, 1.0, 1.0, 10.2) is job


@settings(deadline=None)
@given(
    most=st.integers(1, 20),
    events=st.lists(st.tuples(st.integers(0, 6), st.booleans()), max_size=300),
)
def test_a_flood_keeps_nobodys_first_job_out(most, events):
    """Whatever comes and goes: a client that has none waiting is let in unless as many others wait as jobs may; one
    alone has no more than all places; the i-th largest has at most its i-th part, so the sum is bounded."""
    waiting: Counter[str] = Counter()
    for number, comes in events:
        client = f"client_{number}"
        others = sum(count > 0 for name, count in waiting.items() if name != client)
        let_in = admission.admits(waiting, client, most)
        if waiting.total() < most or (not waiting[client] and others < most):
            assert let_in
        if comes and let_in:
            waiting[client] += 1
        elif not comes and waiting[client]:
            waiting[client] -= 1
        for rank, count in enumerate(sorted(waiting.values(), reverse=True), 1):
            assert count <= most // rank
