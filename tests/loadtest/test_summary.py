"""The account of a load, from outcomes made by hand."""

import pytest
from arrivals import Arrival
from audit import Finding, Verdict
from journey import Outcome
from summary import Slo, accounted, count, spread, summarize, table

LATENCIES = [f"latency_{name}" for name in ("mean", "median", "p50", "p90", "p95", "p99")]
MEMORY = [f"peak_memory_mb_{name}" for name in ("max", "mean", "median")]
SLO_KEYS = ["slo_attainment_rate", "slo_met_success", "slo_scale"]
COUNTS = ["duration", "completed_requests", "failed_requests", "completed_outputs"]
RATES = ["throughput_qps", "output_throughput_ops"]
SGLANG = {*COUNTS, *RATES, *LATENCIES, *MEMORY, *SLO_KEYS}
SIZE = {"height": 16, "width": 32, "num_frames": 5, "num_inference_steps": 10}
UNITS = 2 * 5 * 10


def _record(status: str, run_s: float, **rest) -> dict:
    times = {"created_at": 100.0, "started_at": 101.0, "finished_at": 101.0 + run_s}
    memory = {"peak_memory_bytes": 3 * 2**20}
    return {
        "status": status,
        "fence": 1,
        "request": SIZE,
        "cache": memory,
        "result": {},
        "error": None,
        **times,
        **rest,
    }


def _made(e2e_s: float, priority: str = "normal") -> Outcome:
    record = _record("succeeded", e2e_s - 1)
    arrival = Arrival(0.0, {"priority": priority})
    return Outcome(arrival, "job_1", record=record, video_bytes=7, e2e_s=e2e_s)


CANCELLED = Outcome(
    Arrival(0.0, {}), "job_2", record=_record("cancelled", 1.0), e2e_s=3.0, cancel_s=0.1
)
FAILED = Outcome(
    Arrival(0.0, {}), "job_3", record=_record("failed", 1.0, error={"code": "oom"}), e2e_s=2.0
)
REFUSED = Outcome(Arrival(0.0, {}), refusal="queue_full", retry_after_s=4.0)
GONE = Outcome(Arrival(0.0, {}), "job_4")
OUTCOMES = [_made(2.0), _made(4.0, "low"), CANCELLED, FAILED, REFUSED, GONE]
FINDINGS = [
    *(Finding(o, Verdict.SUCCEEDED, o.record, ("succeeded",)) for o in OUTCOMES[:2]),
    Finding(CANCELLED, Verdict.CANCELLED, CANCELLED.record, ("cancelled",)),
    Finding(FAILED, Verdict.FAILED, FAILED.record, ("failed",)),
    Finding(GONE, Verdict.LOST),
]
SLO = Slo(3.0, 1.0 / UNITS)


def test_every_arrival_is_somewhere():
    """The counts add up, whatever became of them."""
    counted = count(OUTCOMES, FINDINGS, dropped=2)
    assert (
        counted["offered"] == 8 == counted["dropped"] + counted["refused"] + counted["acknowledged"]
    )
    assert counted["acknowledged"] == 5 == sum(counted[verdict] for verdict in Verdict)
    assert (counted["refused_by_code"], counted["failed_by_code"]) == (
        {"queue_full": 1},
        {"oom": 1},
    )
    assert counted["retry_after_s"]["mean"] == 4.0
    assert counted["attempts"] == 4


def test_sglangs_keys():
    """All of its names, over videos only; what was cancelled is neither completed nor failed."""
    summary = summarize(OUTCOMES, FINDINGS, 10.0, 2, SLO)
    assert set(summary) > SGLANG
    assert (summary["completed_requests"], summary["failed_requests"]) == (2, 5)
    assert summary["throughput_qps"] == 0.2
    assert summary["latency_mean"] == summary["latency_median"] == 3.0
    assert summary["peak_memory_mb_max"] == 3.0
    assert (summary["slo_met_success"], summary["slo_attainment_rate"]) == (1, 1 / 7)


def test_stages():
    """Each by itself, whole and by priority; a cancelled job counts for its cancellation only."""
    summary = summarize(OUTCOMES, FINDINGS, 10.0, 0, SLO)
    found = {name: (s["n"], s["mean"]) for name, s in summary["stages"].items()}
    assert found["cancel_latency"] == (1, 0.1)
    assert found["job_queue"] == (3, 1.0)
    assert found["job_run"][0] == found["job_e2e"][0] == 3
    assert summary["by_priority"]["low"]["job_e2e"]["p99"] == 4.0


def test_what_a_request_may_take():
    """So many times what the warm-up's median took for as much work; without a success there nothing will do."""
    slo = Slo.of([_made(1.0), _made(2.0), _made(9.0), FAILED], 3.0)
    assert slo.unit_s == 2.0 / UNITS
    assert slo.met(_made(6.0))
    assert not slo.met(_made(6.1))
    assert not slo.met(FAILED)
    assert not Slo.of([FAILED], 3.0).met(_made(0.1))


@pytest.mark.parametrize("wrong", ["lost", "twice", "unfinished"])
def test_one_wrong_job_is_enough(wrong):
    """And a load in which nothing was acknowledged shows nothing."""
    well = {"acknowledged": 9, "lost": 0, "twice": 0, "unfinished": 0}
    assert accounted(well)
    assert not accounted(well | {wrong: 1})
    assert not accounted(well | {"acknowledged": 0})


def test_percentiles():
    """Of nothing they are zeros."""
    assert spread([float(n) for n in range(101)])["p95"] == 95.0
    assert spread([]) == {"n": 0, "mean": 0.0, "p50": 0.0, "p90": 0.0, "p95": 0.0, "p99": 0.0}


def test_a_load_without_arrivals():
    """Has an account too."""
    assert summarize([], [], 1.0, 0, SLO)["slo_attainment_rate"] == 0.0


def test_the_table_has_every_count():
    """In the order in which they add up."""
    head, _, counts, *_ = table(summarize(OUTCOMES, FINDINGS, 10.0, 2, SLO)).splitlines()
    row = dict(zip(head.split("|")[1:-1], counts.split("|")[1:-1], strict=True))
    assert {name.strip(): int(n) for name, n in row.items()} == {
        "offered": 8, "dropped": 2, "refused": 1, "acknowledged": 5, "succeeded": 2, "failed": 1,
        "cancelled": 1, "unfinished": 0, "lost": 1, "twice": 0, "without_video": 0,
    }  # fmt: skip
