import pytest

from warpcache_ray.serving.lifecycle import Job, Status
from warpcache_ray.serving.metrics import Metrics

NAMES = (
    "warpcache_requests_total",
    "warpcache_cache_hits_total",
    "warpcache_cache_misses_total",
    "warpcache_warp_operations_total",
    "warpcache_recomputes_total",
    "warpcache_cache_size",
    "warpcache_hit_rate",
    "warpcache_request_latency_seconds",
    "warpcache_drift_observed",
    "warpcache_cancel_latency_seconds",
    "warpcache_queue_jobs",
    "warpcache_queue_cost_seconds",
    "warpcache_queue_wait_seconds",
    "warpcache_attempts_lost_total",
    "warpcache_epoch",
    "warpcache_peak_memory_bytes",
)
COUNTERS = NAMES[1:5]


def totals(hits=0, misses=0, warped=0, recomputed=0, cache_bytes=0, drifts=()):
    """What a rank tells of its attempt."""
    counted = {"hits": hits, "misses": misses, "warped": warped, "recomputed": recomputed}
    sizes = {"cache_bytes": cache_bytes, "peak_memory_bytes": 9}
    return {**counted, **sizes, "drifts": list(drifts)}


@pytest.fixture
def metrics():
    return Metrics()


@pytest.fixture
def read(metrics):
    """`read(name)`: the value of a sample."""
    return lambda name, **labels: metrics.registry.get_sample_value(name, labels)


def test_all_metrics_are_exposed(metrics):
    """Each name stands in the text before anything happened, with a help line."""
    lines = metrics.text().splitlines()
    for name in NAMES:
        assert any(line.startswith(f"# HELP {name} ") for line in lines), name


@pytest.mark.parametrize("status", [Status.SUCCEEDED, Status.FAILED, Status.CANCELLED])
def test_ended_jobs_count_by_status(status, metrics, read):
    """A job that ended counts under its status, and its latency is observed."""
    metrics.job_ended(Job("a", {}, {}, created_at=1.0, status=status, finished_at=4.0))
    assert read("warpcache_requests_total", status=status) == 1
    assert read("warpcache_request_latency_seconds_sum") == 3.0
    assert read("warpcache_request_latency_seconds_bucket", le="5.0") == 1


def test_running_totals_count_once(metrics, read):
    """Growing totals add what is new; the same report again adds nothing."""
    first, second = totals(2, 1, 1, 4), totals(5, 1, 3, 6)
    for report in (first, first, second, second):
        metrics.moved("a#1", report)
    assert [read(name) for name in COUNTERS] == [5, 1, 3, 6]


def test_drifts_of_a_repeated_report_count_once(metrics, read):
    """A report that arrives twice is observed once (as `Metrics` says)."""
    report = totals(1, 1, drifts=(0.03, 0.3))
    metrics.moved("a#1", report)
    metrics.moved("a#1", report)
    assert read("warpcache_drift_observed_count") == 2


def test_totals_never_fall(metrics, read):
    """An older report that comes late takes nothing away and is not added again afterwards."""
    for hits in (5, 2, 5, 6):
        metrics.moved("a#1", totals(hits))
    assert read("warpcache_cache_hits_total") == 6


def test_attempts_add_up(metrics, read):
    """Each attempt counts for itself, also after an earlier one is over."""
    metrics.moved("a#1", totals(3))
    metrics.attempt_over("a#1")
    metrics.moved("a#2", totals(2))
    metrics.moved("b#1", totals(1))
    assert read("warpcache_cache_hits_total") == 6


def test_hit_rate_is_that_of_the_sums(metrics, read):
    """Hits / (hits + misses) over all attempts, not a mean of rates; 0 before the first call."""
    assert read("warpcache_hit_rate") == 0
    metrics.moved("a#1", totals(hits=1, misses=0))
    metrics.moved("b#1", totals(hits=2, misses=7))
    assert read("warpcache_hit_rate") == pytest.approx(0.3)


def test_recomputes_that_were_forced_leave_the_rate(metrics, read):
    """Steps without a decision count as recomputes, not as misses."""
    metrics.moved("a#1", totals(hits=1, misses=1, recomputed=9))
    assert read("warpcache_hit_rate") == 0.5


def test_size_is_that_of_running_attempts(metrics, read):
    """The gauge adds what attempts hold and falls when one is over, twice told or not."""
    metrics.moved("a#1", totals(cache_bytes=100))
    metrics.moved("b#1", totals(cache_bytes=50))
    assert read("warpcache_cache_size") == 150
    metrics.attempt_over("a#1")
    metrics.attempt_over("a#1")
    assert read("warpcache_cache_size") == 50


def test_drifts_fall_into_buckets(metrics, read):
    """Observed drifts are counted below the thresholds that policies use."""
    metrics.moved("a#1", totals(drifts=(0.03, 0.07, 0.9)))
    assert read("warpcache_drift_observed_bucket", le="0.08") == 2
    assert read("warpcache_drift_observed_count") == 3
