"""The report as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from warpcache_ray.bench.fronts import TARGETS
from warpcache_ray.bench.report import Score, by_method, costs, lead

_DASH = "–"


def render(about: Mapping[str, Any], scores: Sequence[Score], steps: int) -> str:
    """Calls at equal quality, all settings, the noise floor."""
    conditions, methods = about["conditions"], costs(scores, steps)
    lines = [
        f"{about['model']} ({conditions['fingerprint']}), {steps} steps, guidance {conditions['guidance_scale']:g}, "
        f"{about['prompts']} prompts ({about['prompts_fast']} fast).",
        "",
        *_targets(methods, steps),
        "",
        "Calls are full guided evaluations; in brackets the ratio to all steps. Interpolated between measured points "
        f"(PSNR linear in log calls); {_DASH}: the method's points don't bracket the quality. `with probes`: block "
        "evaluations in units of calls. `fast`: prompts with fast motion only.",
        *_lead(methods),
        "",
        *_settings(scores),
    ]
    floor = [s for s in scores if s.kind == "control" and s.psnr is not None]
    if floor:
        said = "; ".join(f"{s.label}: {s.psnr:.1f} (worst {s.psnr_worst:.1f}) dB" for s in floor)
        lines += ["", f"Numerical noise, uncached: {said}."]
    return "\n".join(lines) + "\n"


def _targets(methods: Mapping[str, Mapping[str, Any]], steps: int) -> list[str]:
    head = ["method", *(f"calls at {t:g} dB" for t in TARGETS)]
    head += [
        *(f"with probes, {t:g}" for t in TARGETS),
        *(f"fast, {t:g}" for t in TARGETS),
        "points 28–42",
        "state",
    ]
    rows = []
    for method, cost in methods.items():
        calls = [_calls(cost["calls"][f"{t:g}"], steps) for t in TARGETS]
        rest = [
            _number(cost[name][f"{t:g}"], 1)
            for name in ("block_calls", "calls_fast")
            for t in TARGETS
        ]
        within = f"{cost['within']} of {cost['settings']}"
        rows.append([method, *calls, *rest, within, cost["state"].replace("|", "/")])
    return _table(head, rows)


def _lead(methods: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """`auto` beside the best other method, a line for each quality that both reach."""
    return [
        line
        for target, found in lead(methods).items()
        for line in (
            "",
            f"At {target} dB `auto` needs {found['auto']:.1f} calls, the best other, {found['method']}, "
            f"{found['best']:.1f}: {found['ratio']:.2f} times as many.",
        )
    ]


def _settings(scores: Sequence[Score]) -> list[str]:
    head = [
        "method",
        "setting",
        "calls",
        "blocks",
        "PSNR (worst) dB",
        "fast",
        "SSIM (worst)",
        "GMSD (worst)",
    ]
    head += ["motion (least)", "cache MB", "speed-up", "state"]
    rows = [_row(s) for own in by_method(scores).values() for s in own]
    return _table(head, rows)


def _row(s: Score) -> list[str]:
    state = "no-op" if s.noop else s.error or ("" if s.complete else f"{s.prompts} prompts only")
    return [
        s.method,
        s.label,
        _number(s.calls, 1),
        _number(s.blocks, 3),
        f"{_number(s.psnr, 2)} ({_number(s.psnr_worst, 1)})",
        _number(s.psnr_fast, 2),
        f"{_number(s.ssim, 4)} ({_number(s.ssim_worst, 3)})",
        f"{_number(s.gmsd, 4)} ({_number(s.gmsd_worst, 3)})",
        f"{_number(s.motion, 3)} ({_number(s.motion_least, 2)})",
        _number(s.cache_bytes and s.cache_bytes / 1e6, 1),
        f"{s.speedup:.2f}× (n = {s.timed})" if s.speedup else _DASH,
        state.replace("|", "/"),
    ]


def _calls(calls: float | None, steps: int) -> str:
    return f"{calls:.1f} ({steps / calls:.2f}×)" if calls else _DASH


def _number(value: float | None, digits: int) -> str:
    return _DASH if value is None else f"{value:.{digits}f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]
