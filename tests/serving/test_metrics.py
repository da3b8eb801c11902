"""The table, the text, and that nothing counts twice, whatever is told in whatever order."""

from collections import Counter
from types import SimpleNamespace

import pytest
from hubs import CONFIG, exported, totals
from hypothesis import given, settings
from hypothesis import strategies as st

from warpcache_ray.errors import Cancelled, GenerationFailed
from warpcache_ray.serving import lifecycle
from warpcache_ray.serving.attempts import Progress
from warpcache_ray.serving.lifecycle import Job, StaleFence, Status
from warpcache_ray.serving.metrics import PREFIX, TABLE, Metrics

OF_THE_SEED = {
    "warpcache_requests_total",
    "warpcache_cache_hits_total",
    "warpcache_cache_misses_total",
    "warpcache_warp_operations_total",
    "warpcache_recomputes_total",
    "warpcache_cache_size",
    "warpcache_hit_rate",
    "warpcache_request_latency_seconds",
    "warpcache_drift_observed",
}
QUEUED = Job("job_1", {"prompt": "a"}, {"name": "never"}, created_at=0.0)
STEPS, ATTEMPTS = 4, 3


def job_named(name, **changes):
    return Job(name, {"prompt": "a"}, {"name": "never"}, created_at=0.0, **changes)


def reported(job, step, now=1.0, **more):
    return lifecycle.report(job, job.fence, Progress.told(totals(step, **more)), now)


@pytest.fixture
def metrics():
    return Metrics()


@pytest.fixture
def read(metrics):
    """`read(name)`: the value of a sample."""
    return lambda name, **labels: metrics.registry.get_sample_value(name, labels)


def test_every_row_is_exported(metrics):
    """Under its name, with its type and help, before anything happened; the seed's names are among them."""
    lines = metrics.text().splitlines()
    for row in TABLE:
        assert f"# HELP {PREFIX}{row.name} {row.help}" in lines
        assert f"# TYPE {PREFIX}{row.name} {row.kind}" in lines
    assert {PREFIX + row.name for row in TABLE} >= OF_THE_SEED


def test_known_labels_are_there_from_the_start(metrics):
    """So that a rate over the first event is no gap."""
    samples = exported(metrics.text())
    assert samples['warpcache_requests_total{status="failed"}'] == 0
    assert samples['warpcache_attempts_ended_total{end="lost"}'] == 0
    assert samples['warpcache_stage_seconds_total{stage="denoise"}'] == 0


def test_the_process_is_measured(metrics):
    """The memory of whoever holds the jobs: it has to stay flat."""
    assert exported(metrics.text())["process_resident_memory_bytes"] > 1 << 20


def test_a_record_counts_once(metrics, read):
    """However often it is seen, and what was older when it comes later takes nothing away."""
    first = lifecycle.claim(QUEUED, "r", 0, 1.0)
    second = reported(first, 3, hits=2)
    for job in (QUEUED, first, second, first, second, second):
        metrics.saw(job)
    assert read("warpcache_cache_hits_total") == 2
    assert read("warpcache_attempts_started_total") == 1
    assert read("warpcache_queue_wait_seconds_count") == 1
    ended = lifecycle.succeed(second, 1, {}, 5.0)
    for _ in range(3):
        metrics.saw(ended)
    assert read("warpcache_requests_total", status="succeeded") == 1
    assert read("warpcache_request_latency_seconds_sum") == 5.0
    assert read("warpcache_useful_worker_seconds_total") == 4.0


def test_jobs_and_attempts_add_up(metrics, read):
    """Each counts for itself."""
    for name, hits in (("a", 1), ("b", 2)):
        job = reported(lifecycle.claim(job_named(name), "r", 0, 1.0), 3, hits=hits)
        job = lifecycle.lose(job, 1, 2, 1, 2.0)
        metrics.saw(job)
        metrics.saw(reported(lifecycle.claim(job, "r", 0, 3.0), 4, hits=3))
    assert read("warpcache_cache_hits_total") == 1 + 2 + 2 * 3
    assert read("warpcache_attempts_ended_total", end="lost") == 2
    assert read("warpcache_recovery_latency_seconds_count") == 2


def test_what_was_known_doesnt_count(metrics, read):
    """A coordinator that was started anew counts what came since; what had ended before isn't its."""
    running = reported(lifecycle.claim(QUEUED, "r", 0, 1.0), 2, hits=1)
    ended = lifecycle.succeed(running, 1, {}, 2.0)
    metrics.know([running, lifecycle.request_end(job_named("b"), Cancelled("x"), 1.0)])
    metrics.saw(running)
    metrics.measured(running, [0.1])
    assert read("warpcache_cache_hits_total") == 0
    assert read("warpcache_drift_observed_count") == 0
    metrics.saw(reported(running, 3, hits=2))
    assert read("warpcache_cache_hits_total") == 1
    metrics.saw(ended)
    assert read("warpcache_requests_total", status="succeeded") == 1
    assert read("warpcache_jobs_submitted_total", priority="normal") == 0


def test_hit_rate_is_that_of_the_sums(metrics, read):
    """Hits / (hits + misses) over all attempts, not a mean of rates; forced recomputes don't count."""
    assert read("warpcache_hit_rate") == 0
    for name, hits, misses in (("a", 1, 0), ("b", 2, 7)):
        told = totals(4, hits=hits) | {"summary": {"misses": misses}}
        job = lifecycle.claim(job_named(name), "r", 0, 1.0)
        metrics.saw(lifecycle.report(job, 1, Progress.told(told), 2.0))
    assert read("warpcache_hit_rate") == pytest.approx(0.3)


def test_drifts_count_once_and_fall_into_buckets(metrics, read):
    """A report holds all that its attempt has seen, and may come twice; what is infinite is left out."""
    job = lifecycle.claim(QUEUED, "r", 0, 1.0)
    for drifts in ([0.03], [0.03, 0.07, 0.9, float("inf")], [0.03]):
        for _ in range(2):
            told = Progress.told(totals(2) | {"drifts": drifts})
            job = lifecycle.report(job, 1, told, 2.0)
            metrics.saw(job)
            metrics.measured(job, told.drifts)
    assert read("warpcache_drift_observed_bucket", le="0.08") == 2
    assert read("warpcache_drift_observed_count") == 3


def test_the_largest_so_far(metrics, read):
    """Of memory and epochs; a smaller one that comes later changes nothing."""
    for name, memory, epoch in (("a", 9, 3), ("b", 5, 2)):
        told = totals(1) | {"summary": {"peak_memory_bytes": memory}}
        job = lifecycle.claim(job_named(name), "r", epoch, 1.0)
        metrics.saw(lifecycle.report(job, 1, Progress.told(told), 2.0))
    metrics.raised(1)
    assert (read("warpcache_peak_memory_bytes"), read("warpcache_epoch")) == (9, 3)


def test_how_things_stand(metrics, read):
    """Jobs by where they are, what their caches hold, who is ready."""
    running = [reported(lifecycle.claim(job_named(name), "r", 0, 1.0), 2) for name in "ab"]
    jobs = [*running, job_named("c"), lifecycle.request_end(job_named("d"), Cancelled("x"), 1.0)]
    metrics.standing(jobs, lambda job: 7.0, 3, CONFIG)
    assert (read("warpcache_jobs_running"), read("warpcache_cache_size")) == (2, 16)
    assert read("warpcache_queue_jobs", priority="normal") == 1
    assert read("warpcache_queue_jobs", priority="high") == 0
    assert read("warpcache_queue_cost_seconds") == 7.0
    assert (read("warpcache_replicas_ready"), read("warpcache_ranks_ready")) == (3, 3)


def test_how_the_model_was_loaded(metrics, read):
    """Of the replica that took longest; one of an older version doesn't tell."""
    metrics.loaded([{"load_seconds": 2.5, "weight_bytes": 8}, {"load_seconds": 4.0}, {}])
    assert (read("warpcache_load_seconds"), read("warpcache_weight_bytes")) == (4.0, 8)


def test_the_stores_absence(metrics, read):
    """Its failures and the time away only grow; whether it is there is of the last call."""
    for failures, away_s, away in ((0, 0.0, False), (2, 1.5, True), (2, 4.0, False)):
        metrics.stored(SimpleNamespace(failures=failures, away_s=away_s, away=away))
        assert read("warpcache_store_errors_total") == failures
        assert read("warpcache_store_away_seconds_total") == away_s
        assert read("warpcache_store_up") == (not away)


MOVES = ("claim", "step", "again", "late", "succeed", "fail", "lose", "cancel", "seen anew")


class World:
    """Jobs under random moves, each told to the metrics as the coordinator does it."""

    def __init__(self):
        self.metrics = Metrics()
        self.jobs = {name: job_named(name) for name in "ab"}
        self.before = dict(self.jobs)
        self.now = 0.0
        self.steps = Counter()
        """Made, by job and fence."""
        for job in self.jobs.values():
            self.metrics.saw(job)

    def move(self, name, move, seconds):
        self.now += seconds
        job = self.jobs[name]
        try:
            moved = self.moved(job, move)
        except StaleFence:
            return
        self.jobs[name] = moved
        self.metrics.saw(moved)
        if move == "seen anew" and not job.ended:
            # A report that comes while a change is being stored is seen first, then what was there before it.
            self.metrics.saw(self.before[name])
        self.before[name] = job

    def moved(self, job, move):
        fence, place = job.fence, (job.id, job.fence)
        match move:
            case "claim":
                return lifecycle.claim(job, "r", 0, self.now, ranks=2)
            case "step" if job.status is Status.RUNNING and job.step < STEPS:
                start = self.start_of(job)
                self.steps[place] = max(self.steps[place], start) + 1
                return self.told(job, self.steps[place], start)
            case "again" if job.step:
                return self.told(job, job.step, self.start_of(job))
            case "late" if job.step > 1:
                return self.told(job, job.step - 1, self.start_of(job))
            case "succeed":
                return lifecycle.succeed(job, fence, {"timings": {"denoise": 1.0}}, self.now)
            case "fail":
                return lifecycle.fail(job, fence, GenerationFailed("x").to_dict(), self.now)
            case "lose":
                return lifecycle.lose(job, fence, ATTEMPTS, 1, self.now)
            case "cancel":
                return lifecycle.request_end(job, Cancelled("x"), self.now)
        return job

    def start_of(self, job):
        """Attempts after the first go on from the last but one step of the one before, if that made two."""
        before = self.steps[job.id, job.fence - 1]
        return max(0, before - 1)

    def told(self, job, step, start):
        made = step - start
        decisions = {branch: {"recompute": 1, "reuse": made - 1} for branch in ("cond", "uncond")}
        report = totals(step, kept=step, resumed_at=start) | {"decisions": decisions}
        return lifecycle.report(job, job.fence, Progress.told(report), self.now)

    def totals(self):
        """Of each metric over all labels."""
        sums = Counter()
        for sample, value in exported(self.metrics.text()).items():
            sums[sample.split("{")[0].removeprefix(PREFIX)] += value
        return sums


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from("ab"), st.sampled_from(MOVES), st.sampled_from([0.25, 1.0, 4.0])),
        max_size=60,
    )
)
def test_whatever_happens_the_figures_agree(moves):
    """Two jobs, moves in any order, some told twice or late. Worker-seconds are useful or wasted, none both; decisions
    are branches times steps; jobs and attempts are accounted for; the exact seconds are the histograms' sums."""
    world = World()
    for move in moves:
        world.move(*move)
    jobs, total = world.jobs.values(), world.totals()
    attempts = [attempt for job in jobs for attempt in job.attempts]
    ended = [attempt for job in jobs if job.ended for attempt in job.attempts]

    spent = sum((a.ended_at - a.started_at) * 2 for a in ended)
    used = total["useful_worker_seconds_total"]
    wasted = total["wasted_worker_seconds_total"]
    assert used + wasted == pytest.approx(spent)
    assert used == 0 or any(job.status is Status.SUCCEEDED for job in jobs)

    made = sum(max(0, a.step - a.resumed_at) for a in attempts)
    assert total["steps_made_total"] == made
    assert total["decisions_total"] == 2 * made
    hits, recomputes = total["cache_hits_total"], total["recomputes_total"]
    assert hits + recomputes == 2 * made

    assert total["jobs_submitted_total"] == len(jobs)
    assert total["requests_total"] == sum(job.ended for job in jobs)
    assert total["errors_total"] == sum(job.error is not None for job in jobs)
    assert total["attempts_started_total"] == len(attempts)
    assert total["attempts_ended_total"] == sum(a.end is not None for a in attempts)
    for name in ("recovery", "stage"):
        exact = total[f"{name}_seconds_total"]
        assert exact == pytest.approx(total[f"{name}_latency_seconds_sum"])
