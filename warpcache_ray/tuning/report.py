"""One HTML page per profile: what was found, from what, and how sure it is. It needs nothing from elsewhere."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from html import escape
from itertools import accumulate
from pathlib import Path
from typing import Any

from warpcache_ray.core.schedule import NEAR_NOISE, Plan
from warpcache_ray.policy_document import PolicyDocument
from warpcache_ray.tuning.outlook import decibels, quality
from warpcache_ray.tuning.search import Profile, Trial
from warpcache_ray.tuning.sensitivity import sensitivity
from warpcache_ray.tuning.svg import Chart, heat_map

STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#1b2733;background:#fff;max-width:760px;margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem}h2{font-size:1.1rem;margin-top:2rem}p{margin:.4rem 0}.lead{font-size:1.1rem}
table{border-collapse:collapse}td,th{padding:.15rem .8rem .15rem 0;text-align:left;font-variant-numeric:tabular-nums}
svg{max-width:100%;height:auto;display:block;margin:.6rem 0}svg text{font:12px system-ui,sans-serif;fill:#51606e}
svg .label{text-anchor:middle}svg .grid{stroke:#e6ebf0}svg .axis{stroke:#8896a3;fill:none}
svg .level{stroke:#c0392b;stroke-dasharray:5 4}svg .note{fill:#c0392b}svg .band{fill:#2673b8;fill-opacity:.13}
svg polyline{fill:none;stroke-width:2}svg .expected{stroke:#2673b8}svg .measured{stroke:#e08a1e}
svg .bound{stroke:#2673b8;stroke-dasharray:4 3}svg circle{fill:#e08a1e;fill-opacity:.75}svg circle.chosen{fill:#c0392b}
svg circle.end{fill:#2673b8}svg .cell{fill:#14416b;stroke:#dde4ea}code{font-size:.85em;word-break:break-all}
"""


TOLD = ("trials", "benefit", "other_policies")
"""Parts of the provenance that have a section of their own."""


def write_report(document: PolicyDocument, profile: Profile, path: Path) -> None:
    """Writes the page."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render(document, profile))


def render(document: PolicyDocument, profile: Profile) -> str:
    """The page's HTML."""
    calls = int(document.expected["calls"])
    sections = [
        ("Speed and quality", _front(profile, calls)),
        ("Schedule", _schedule(profile, calls)),
        ("Other policies", _others(document)),
        ("Predicted and measured error", _errors(profile)),
        ("Sensitivity", _sensitivity(profile)),
        ("What each run was worth", _benefit(profile)),
        ("Certificate", _certificate(document)),
        ("Runs", _runs(profile)),
        ("Where it comes from", _provenance(document)),
    ]
    body = "".join(f"<section><h2>{title}</h2>{content}</section>" for title, content in sections)
    title = f"Profile of {escape(document.key.model)}"
    lead = (
        f"{calls} of {profile.steps} calls ({profile.steps / calls:.2f} times fewer) for {document.target}: "
        f"{'certified' if document.certified else 'an estimate, not certified'}."
    )
    return (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"/><title>{title}</title>'
        f'<style>{STYLE}</style></head><body><h1>{title}</h1><p class="lead">{escape(lead)}</p>{body}</body></html>\n'
    )


def _front(profile: Profile, calls: int) -> str:
    """Calls against quality: expected in the middle, for the share, and as measured."""
    metric = profile.metric
    outlook = profile.outlook()
    budgets = range(max(2, calls // 2), min(profile.steps - 1, 3 * calls) + 1)
    middle = [(c, outlook.bound(profile.predicted(c), 0.5)) for c in budgets]
    low = [(c, outlook.bound(profile.predicted(c), profile.share)) for c in budgets]
    trials = [(t.calls, t.predicted + t.level(metric)) for t in profile.trials]
    values = [y for _, y in (*middle, *low, *trials)]
    name = "PSNR in dB" if metric == "psnr" else "SSIM as dB: -12.5 log10(1 - SSIM)"
    span = (budgets.start - 0.5, budgets.stop - 0.5)
    chart = Chart(span, (min(values) - 2, max(values) + 2), "calls", name)
    chart.band(low, middle)
    chart.line(middle, "expected")
    chart.line(low, "bound")
    if profile.target.metric != "calls":
        chart.level(decibels(metric, profile.target.bound), str(profile.target))
    titles = [
        f"request {t.request.seed}: {quality(metric, y):.4g}"
        for t, (_, y) in _pairs(profile, trials)
    ]
    chart.points(trials, "trial", titles)
    at = outlook.bound(profile.predicted(calls), profile.share)
    chart.points([(calls, at)], "chosen", [f"chosen: {calls} calls"])
    floor = f"{profile.noise.psnr:.1f} dB, SSIM {profile.noise.ssim:.5f}"
    return (
        f"{chart.render()}<p>Line: expected of the median request; dashed: of {profile.share:.0%} of the requests, at "
        f"least. Orange: real runs. Red: the policy chosen. Noise floor (a request uncached, its first latents changed "
        f"by a millionth): {floor}.</p>"
    )


def _pairs(
    profile: Profile, points: list[tuple[int, float]]
) -> Iterable[tuple[Trial, tuple[int, float]]]:
    return zip(profile.trials, points, strict=True)


def _schedule(profile: Profile, calls: int) -> str:
    """Which steps are computed, and what each gap after them is expected to cost."""
    chart, steps = profile.chart, profile.steps
    gaps = _gaps(chart, calls)
    computed = {s for _, s, _ in gaps}
    cost = [0.0] * steps
    for p, s, e in gaps:
        cost[s] = chart.error(p, s, e)
    rows = [("computed", [float(i in computed) for i in range(steps)]), ("gap's error", cost)]
    listed = ", ".join(str(s) for s in sorted(computed))
    return (
        f"{heat_map(rows, 'value')}<p>Steps computed: {listed}. Darker: a larger expected square error of the gap that "
        "begins there.</p>"
    )


def _others(document: PolicyDocument) -> str:
    """What the same quality would cost with published policies."""
    rows = [
        (name, other["calls"], ", ".join(f"{k} {v}" for k, v in _telling(other["policy"])))
        for name, other in document.provenance["other_policies"].items()
    ]
    if not rows:
        return "<p>None that can be replayed reaches this quality.</p>"
    return (
        f"{_table(('policy', 'calls', 'settings'), rows)}<p>The fewest calls with which each is expected to be as "
        "good, replayed on the same runs. Policies that look into the blocks can't be.</p>"
    )


def _telling(policy: dict[str, Any]) -> list[tuple[str, Any]]:
    """The settings that say what it does."""
    names = ("order", "interval", "warmup", "threshold", "space", "retention", "schedule")
    return [(name, policy[name]) for name in names if name in policy]


def _gaps(chart: Plan, calls: int) -> list[tuple[int | None, int, int]]:
    steps = chart.schedule(calls)
    return list(zip((None, *steps), steps, (*steps[1:], chart.steps), strict=False))


def _errors(profile: Profile) -> str:
    """The traced request's latents, run by run."""
    traced = next((t for t in profile.trials if t.score.errors is not None), None)
    if traced is None or traced.score.errors is None:
        return "<p>No run was traced.</p>"
    gaps = _gaps(profile.chart, traced.calls)
    spent = accumulate(profile.chart.error(*gap) for gap in gaps)
    expected = [
        (float(e), total) for (_, _, e), total in zip(gaps, spent, strict=True) if total > 0
    ]
    # In units of the content, of which a latent holds 1 - sigma.
    content = [(1 - sigma + NEAR_NOISE) ** 2 for sigma in profile.course.sigmas[1:]]
    measured = [
        (i, error / held)
        for i, (error, held) in enumerate(zip(traced.score.errors, content, strict=True), 1)
        if error > 0
    ]
    values = [y for _, y in (*expected, *measured)]
    if not values:
        return "<p>No error at all: every step is computed.</p>"
    span = (min(values) / 2, max(values) * 2)
    chart = Chart((0, profile.steps), span, "after step", "square error", log_y=True)
    chart.line(measured, "measured")
    chart.line(expected, "expected")
    chart.points(expected, "end", [f"after step {x:g}: {y:.3g}" for x, y in expected])
    return (
        f"{chart.render()}<p>Request {traced.request.seed} with {traced.calls} calls: mean square error of the latents "
        "in units of the content that they hold. Blue: predicted in closed form, as gaps end; orange: measured.</p>"
    )


def _sensitivity(profile: Profile) -> str:
    """By step, by branch, by block."""
    found = sensitivity(profile)
    alone = [value or 0.0 for value in found["steps"]]
    maps = "".join(
        f"{heat_map(_numbered(own), 'relative change')}<p>Relative change of what each block adds to its input, branch "
        f"{escape(branch)}.</p>"
        for branch, own in found["blocks"].items()
    )
    return (
        f"{heat_map([('skipped', alone)], 'expected square error')}<p>Expected square error of the final latent if "
        "this step alone is left out.</p>"
        f"{heat_map(list(found['branches'].items()), 'relative change')}<p>Relative change of each branch's output "
        f"since the step before.</p>{maps}"
    )


def _numbered(blocks: list[list[float]]) -> list[tuple[str, list[float]]]:
    return [(f"block {index}", own) for index, own in enumerate(blocks)]


def _benefit(profile: Profile) -> str:
    points = profile.benefit()
    high = max(calls for _, calls in points)
    span = (profile.generations - sum(t.score.calls for t in profile.trials) / profile.steps, 12.0)
    chart = Chart(span, (0, high + 2), "generations spent", "calls chosen", height=180)
    chart.line(points, "expected")
    chart.points(points, "end")
    return (
        f"{chart.render()}<p>The calls that would have been chosen had the search ended there.</p>"
    )


def _certificate(document: PolicyDocument) -> str:
    found, expected = document.certificate, document.expected
    if found is None:
        share = expected["share_kept"]
        told = "" if share is None else f"{share:.1%} of the requests are expected to keep it. "
        return (
            f"<p>None. {told}{expected['share']:.0%} are expected to reach {expected['psnr']:.2f} dB and SSIM "
            f"{expected['ssim']:.4f}. Both are estimates from {document.provenance['prompts']} prompts.</p>"
        )
    verdict = (
        f"At {1 - found.delta:.0%} confidence, at least {found.share:.0%} of all requests like these keep "
        f"{document.target}."
        if found.certified
        else f"Not proven that {found.share:.0%} of the requests keep {document.target}."
    )
    return (
        f"<p>{verdict}</p><p>{found.misses} of {found.requests} fresh requests missed it; {found.allowed_misses} were "
        f"allowed. Exact lower bound of the share that keeps it: {found.share_kept:.2%}. Policies tested, from the "
        f"safest on: {found.policies_tested}.</p>"
    )


def _runs(profile: Profile) -> str:
    rows = (
        (
            t.request.seed,
            f"{t.score.calls:g}",
            f"{t.score.psnr:.2f}",
            f"{t.score.ssim:.4f}",
            t.request.prompt,
        )
        for t in profile.trials
    )
    return _table(("request", "calls", "PSNR", "SSIM", "prompt"), rows)


def _provenance(document: PolicyDocument) -> str:
    rows = [*asdict(document.key).items(), ("store's key", document.key.digest)]
    rest = {k: v for k, v in document.provenance.items() if k not in TOLD}
    told = _table(("", ""), [*rows, *rest.items()])
    return f"{told}<p><code>{escape(json.dumps(document.expected))}</code></p>"


def _table(head: Iterable[object], rows: Iterable[Iterable[object]]) -> str:
    def row(cells: Iterable[object], tag: str) -> str:
        return f"<tr>{''.join(f'<{tag}>{escape(str(cell))}</{tag}>' for cell in cells)}</tr>"

    return f"<table>{row(head, 'th')}{''.join(row(cells, 'td') for cells in rows)}</table>"
