import json
import time
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from warpcache_ray.bench import command, runner
from warpcache_ray.bench.command import Request, bench, contenders_for
from warpcache_ray.bench.conditions import check_disjoint
from warpcache_ray.bench.contender import Setting
from warpcache_ray.bench.measure import Prompt
from warpcache_ray.bench.rows import Rows
from warpcache_ray.bench.runner import Plan, resolve, run_quality, run_timing
from warpcache_ray.cli import app
from warpcache_ray.errors import InvalidConfig

FOUR = Setting("fewer steps", "fewer_steps", "steps 4", {"steps": 4})
BAD = Setting("bad", "diffusers", "x", {"config": "NoSuchConfig"})
PROMPTS = [Prompt("a cat", 0), Prompt("a dog", 1)]


@pytest.fixture
def plan(tiny, tmp_path):
    return Plan(tiny("wan"), tmp_path / "work")


def test_a_run_goes_on_where_it_ended(plan, tmp_path, monkeypatch):
    """Rows on disk are not measured again, not even with half a row at the end; a failure is a row too."""
    path = tmp_path / "rows.jsonl"
    run_quality(plan, [FOUR, BAD], PROMPTS[:1], Rows(path))
    with path.open("a") as out:
        out.write('{"key": "cut')
    made = []
    monkeypatch.setattr(
        runner, "measure", lambda s, p, c, r: made.append((s, p)) or {"key": str(p)}
    )
    run_quality(plan, [FOUR, BAD], PROMPTS, Rows(path))
    assert made == [(FOUR, PROMPTS[1]), (BAD, PROMPTS[1])]


def test_rows_survive(tmp_path):
    """What is added is there for the next one; what is forgotten is replaced by the next row with its key."""
    rows = Rows(tmp_path / "rows.jsonl")
    rows.add({"key": "a", "psnr": 1})
    rows.forget(["a", "b"])
    assert "a" not in rows
    rows.add({"key": "a", "psnr": 2})
    assert Rows(rows.path).by_key == {"a": {"key": "a", "psnr": 2}}


def test_keys_follow_conditions(plan, tmp_path):
    """Other steps, guidance or weights are other measurements; another place of the same weights isn't."""
    same = replace(plan.conditions, model="elsewhere")
    others = [
        replace(plan.conditions, **change)
        for change in ({"steps": 9}, {"guidance_scale": 1.0}, {"fingerprint": "other"})
    ]
    assert same.key == plan.conditions.key
    assert len({plan.conditions.key, *(o.key for o in others)}) == 4


def test_time_is_up(plan, tmp_path):
    """Nothing is started any more."""
    rows = Rows(tmp_path / "rows.jsonl")
    late = replace(plan, until=time.monotonic() - 1)
    run_quality(late, [FOUR], PROMPTS, rows)
    run_timing(late, [FOUR], PROMPTS[:1], rows)
    assert rows.by_key == {}


def test_timing_pairs(plan, tmp_path):
    """Each run beside an uncached one of the same prompt."""
    rows = Rows(tmp_path / "timings.jsonl")
    run_timing(plan, [FOUR], PROMPTS[:1], rows)
    (row,) = rows.by_key.values()
    assert 0 < row["seconds"] < row["uncached_s"]


def test_magcache_is_calibrated_once(plan):
    """On the calibration prompts; the ratios are part of the setting."""
    setting = Setting(
        "mag", "diffusers", "x", {"config": "MagCacheConfig", "mag_ratios": "calibrate"}
    )
    calibration = [Prompt("a bird", 1000)]
    (found, other) = resolve(plan, [setting, FOUR], calibration)
    assert len(found.options["mag_ratios"]) == plan.conditions.steps
    assert other is FOUR
    (file,) = plan.work.glob("magcache-*.json")
    file.write_text("[0.5]")
    assert resolve(plan, [setting], calibration)[0].options["mag_ratios"] == [0.5]


def test_test_prompts_are_held_out():
    """What something was fitted on can't test it."""
    check_disjoint(["a"], ["b"])
    with pytest.raises(InvalidConfig, match="'a'"):
        check_disjoint(["a", "b"], ["a"])


@pytest.fixture
def request_for(tiny, tmp_path):
    contenders = tmp_path / "contenders.yaml"
    contenders.write_text(
        "fewer steps: {kind: fewer_steps, settings: [{steps: 6}, {steps: 4}, {steps: 3}, {steps: 2}]}\n"
        "interval: {kind: policy, fixed: {name: interval}, settings: [{every: 2}]}\n"
    )
    for name, lines in (("test", "a cat\na dog\n"), ("calibration", "a\nb\nc\nd\ne fast bird\n")):
        (tmp_path / f"{name}.txt").write_text(lines)
    return Request(
        tiny("wan"),
        contenders,
        tmp_path / "report",
        tmp_path / "work",
        tmp_path / "test.txt",
        tmp_path / "calibration.txt",
        timed=1,
    )


def test_quick_bench(request_for, tmp_path):
    """Three settings of each method; JSON, Markdown and plot."""
    text = bench(replace(request_for, quick=True, count=1))
    assert "steps 4" not in text
    assert "steps 3" in text
    report = json.loads((tmp_path / "report.json").read_text())
    assert {s["method"] for s in report["scores"]} == {"fewer steps", "interval"}
    assert (tmp_path / "report.md").read_text() == text
    assert (tmp_path / "report.png").exists()


def test_out_of_time(request_for, monkeypatch):
    """A quick bench that can't finish compares what all have been measured on."""
    monkeypatch.setattr(command, "QUICK_S", 0.0)
    bench(replace(request_for, quick=True, count=1))
    assert not (request_for.work / "rows.jsonl").exists()
    bench(replace(request_for, count=1, timed=0))
    text = bench(replace(request_for, quick=True, count=2))
    assert "1 prompts" in text
    assert "incomplete" not in text


def test_command_line(request_for, tmp_path):
    """The same through `warpcache bench`; an unknown method is a complaint, not a traceback."""
    arguments = ["bench", "--model", request_for.conditions.model, "--count", "1", "--timed", "1"]
    for name in ("contenders", "prompts", "calibration_prompts", "out", "work"):
        arguments += [f"--{name.replace('_', '-')}", str(getattr(request_for, name))]
    arguments += ["--size", "32", "32", "9", "--steps", "8"]
    told = CliRunner().invoke(app, [*arguments, "--only", "interval"])
    assert told.exit_code == 0, told.output
    assert "| interval | every 2 | 5.0 | 0.625 |" in told.output
    assert "(n = 1)" in told.output
    assert CliRunner().invoke(app, [*arguments, "--only", "none"]).exit_code == 2


def test_scan_uses_calibration_prompts(request_for, tmp_path):
    """Settings are not chosen on test prompts, nor on those that constants are fitted on."""
    bench(replace(request_for, scan=True, only=("interval",)))
    (row,) = (json.loads(line) for line in (tmp_path / "work/rows.jsonl").read_text().splitlines())
    assert (row["prompt"], row["seed"], row["method"]) == ("e fast bird", 1004, "interval")


def test_unknown_methods_are_refused(request_for):
    """With what there is."""
    with pytest.raises(InvalidConfig, match="fewer steps, interval"):
        bench(replace(request_for, only=("intervall",)))


def test_contenders_come_with_the_models():
    """By the model's name."""
    assert contenders_for("toyworld/wan").stem == "toyworld-wan"
    with pytest.raises(InvalidConfig, match="toyworld-wan"):
        contenders_for("some/model")


@pytest.mark.slow
def test_workers_share_the_work(plan, tmp_path):
    """Two processes measure what one would."""
    alone, together = Rows(tmp_path / "1.jsonl"), Rows(tmp_path / "2.jsonl")
    run_quality(plan, [FOUR], PROMPTS, alone)
    run_quality(replace(plan, workers=2), [FOUR], PROMPTS, together)
    assert {k: r["psnr"] for k, r in alone.by_key.items()} == {
        k: r["psnr"] for k, r in together.by_key.items()
    }
