"""What a load came to, as JSON: the keys of sglang's `bench_serving` for video, and what only an open loop with an
audit can tell."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from audit import Finding, Verdict
from journey import Outcome

PERCENTILES = (50, 90, 95, 99)
MEBIBYTE = 2**20


@dataclass(frozen=True, slots=True)
class Slo:
    """How long a request may take: `scale` times what an equal share of pixels, frames and steps took in the warm-up,
    as sglang's and vLLM-Omni's load generators define it."""

    scale: float
    unit_s: float

    @classmethod
    def of(cls, warmup: Sequence[Outcome], scale: float) -> Slo:
        """By the median of requests that had the service to themselves; never met if none of them succeeded."""
        units = [
            o.e2e_s / _units(o.record) for o in warmup if _delivered(o) and o.e2e_s and o.record
        ]
        return cls(scale, float(np.median(units)) if units else math.nan)

    def met(self, outcome: Outcome) -> bool:
        """Whether this request's video came in time."""
        if outcome.record is None or outcome.e2e_s is None or not _delivered(outcome):
            return False
        return outcome.e2e_s <= self.scale * self.unit_s * _units(outcome.record)


def summarize(
    outcomes: Sequence[Outcome],
    findings: Sequence[Finding],
    duration_s: float,
    dropped: int,
    slo: Slo,
) -> dict[str, Any]:
    """The whole account. Latencies are in seconds.

    Args:
        outcomes: of all journeys that were begun.
        findings: the audit's, one for each acknowledged job.
        duration_s: from the first arrival to the end of the last journey.
        dropped: arrivals for which there was no room in the load generator.
        slo: what counts as in time.
    """
    counted = count(outcomes, findings, dropped)
    videos = [outcome for outcome in outcomes if _delivered(outcome)]
    cancelled = counted["cancelled"]
    latencies = [o.e2e_s for o in videos if o.e2e_s is not None]
    peaks = [o.record["cache"]["peak_memory_bytes"] / MEBIBYTE for o in videos if o.record]
    met = sum(map(slo.met, outcomes))
    sglang = {
        "duration": duration_s,
        "completed_requests": len(videos),
        "failed_requests": counted["offered"] - len(videos) - cancelled,
        "completed_outputs": len(videos),
        "throughput_qps": len(videos) / duration_s,
        "output_throughput_ops": len(videos) / duration_s,
        **{f"latency_{name}": value for name, value in spread(latencies).items() if name != "n"},
        "latency_median": spread(latencies)["p50"],
        "peak_memory_mb_max": max(peaks, default=0.0),
        "peak_memory_mb_mean": float(np.mean(peaks)) if peaks else 0.0,
        "peak_memory_mb_median": float(np.median(peaks)) if peaks else 0.0,
        "slo_scale": slo.scale,
        "slo_met_success": met,
        "slo_attainment_rate": met / max(1, counted["offered"] - cancelled),
    }
    return sglang | {
        "jobs": counted,
        "stages": stages(outcomes),
        "by_priority": _by_priority(outcomes),
    }


def count(outcomes: Sequence[Outcome], findings: Sequence[Finding], dropped: int) -> dict[str, Any]:
    """Where every arrival went: offered = dropped + refused + acknowledged, and acknowledged = succeeded + failed +
    cancelled + unfinished + lost."""
    verdicts = Counter(finding.verdict for finding in findings)
    refusals = Counter(outcome.refusal for outcome in outcomes if outcome.refusal)
    failures = Counter(
        finding.record["error"]["code"]
        for finding in findings
        if finding.verdict is Verdict.FAILED and finding.record is not None
    )
    waits = [o.retry_after_s for o in outcomes if o.retry_after_s is not None]
    return {
        "offered": len(outcomes) + dropped,
        "dropped": dropped,
        "refused": sum(refusals.values()),
        "refused_by_code": dict(refusals),
        "retry_after_s": spread(waits),
        "acknowledged": len(findings),
        **{verdict.value: verdicts[verdict] for verdict in Verdict},
        "failed_by_code": dict(failures),
        "twice": sum(finding.twice for finding in findings),
        "without_video": sum(finding.without_video for finding in findings),
        "attempts": sum(f.record["fence"] for f in findings if f.record is not None),
        "requests_resent": sum(outcome.resent for outcome in outcomes),
    }


def accounted(counted: Mapping[str, Any]) -> bool:
    """Whether there were acknowledged jobs, and every one came to one end, once."""
    wrong = counted["lost"] + counted["twice"] + counted["unfinished"]
    return bool(counted["acknowledged"] and not wrong)


def stages(outcomes: Iterable[Outcome]) -> dict[str, dict[str, float]]:
    """How long each stage took, under the names that Locust has them by."""
    spans: dict[str, list[float]] = {name: [] for name in STAGES}
    for outcome in outcomes:
        for name, seconds in spans_of(outcome).items():
            spans[name].append(seconds)
    return {name: spread(found) for name, found in spans.items()}


STAGES = ("job_e2e", "job_queue", "job_run", "cancel_latency")


def spans_of(outcome: Outcome) -> dict[str, float]:
    """The stages of a job that its client saw come to an end; a cancelled one counts for its cancellation only."""
    if outcome.cancel_s is not None:
        return {"cancel_latency": outcome.cancel_s}
    spans = {"job_e2e": outcome.e2e_s, "job_queue": outcome.queue_s, "job_run": outcome.run_s}
    return {name: seconds for name, seconds in spans.items() if seconds is not None}


def spread(values: Sequence[float]) -> dict[str, float]:
    """Mean and percentiles, and of how many; zeros of none."""
    found = np.percentile(values, PERCENTILES) if values else np.zeros(len(PERCENTILES))
    mean = float(np.mean(values)) if values else 0.0
    percentiles = {f"p{p}": float(v) for p, v in zip(PERCENTILES, found, strict=True)}
    return {"n": len(values), "mean": mean, **percentiles}


def _by_priority(outcomes: Iterable[Outcome]) -> dict[str, dict[str, dict[str, float]]]:
    groups: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault(outcome.arrival.body.get("priority", "normal"), []).append(outcome)
    return {priority: stages(group) for priority, group in sorted(groups.items())}


def _delivered(outcome: Outcome) -> bool:
    return outcome.video_bytes > 0


def _units(record: Mapping[str, Any]) -> float:
    # What a service leaves to its pipeline is alike for all requests.
    asked = record["request"].get
    pixels = asked("height", 16) * asked("width", 16) / 256
    return float(pixels * asked("num_frames", 1) * asked("num_inference_steps", 1))


def table(summary: Mapping[str, Any]) -> str:
    """The account as markdown: where the arrivals went, and how long the stages took."""
    jobs = summary["jobs"]
    went = ("offered", "dropped", "refused", "acknowledged", *Verdict, "twice", "without_video")
    lines = [f"| {' | '.join(went)} |", "|---" * len(went) + "|"]
    lines += [f"| {' | '.join(str(jobs[name]) for name in went)} |", ""]
    columns = ("n", "mean", *(f"p{p}" for p in PERCENTILES))
    lines += [f"| seconds | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    lines += [
        f"| {stage} | {' | '.join(f'{found[name]:.4g}' for name in columns)} |"
        for stage, found in summary["stages"].items()
    ]
    return "\n".join(lines)
