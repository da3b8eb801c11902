import pytest

from warpcache_ray.bench.conditions import Conditions
from warpcache_ray.bench.contender import Setting
from warpcache_ray.bench.markdown import render
from warpcache_ray.bench.measure import Prompt, row_key
from warpcache_ray.bench.plot import plot
from warpcache_ray.bench.report import as_json, costs, lead, score, worth_timing
from warpcache_ray.bench.rows import Rows

CONDITIONS = Conditions("a/model", "abc")
PROMPTS = [Prompt("a circle moving fast", 0), Prompt("a square", 1)]
GOOD = {"ssim": 0.9, "gmsd": 0.1, "motion": 1.0, "cache_bytes": 10, "noop": False}
ABOUT = {
    "model": "a/model",
    "conditions": {"fingerprint": "abc", "guidance_scale": 4.0},
    "prompts": 2,
    "prompts_fast": 1,
}
SETTINGS = [Setting("m", "cache_dit", f"at {c}", {"calls": c}) for c in (10, 20, 40)]


@pytest.fixture
def stores(tmp_path):
    return Rows(tmp_path / "rows.jsonl"), Rows(tmp_path / "timings.jsonl")


def fill(rows, setting, prompt, **values):
    rows.add({"key": row_key(setting, prompt, CONDITIONS), "prompt": prompt.text, **values})


def measured(stores, settings=SETTINGS, psnrs=(30.0, 36.0, 44.0)):
    for setting, psnr in zip(settings, psnrs, strict=True):
        calls = setting.options["calls"]
        for prompt, by in zip(PROMPTS, (-2, 2), strict=True):
            fill(stores[0], setting, prompt, calls=calls, blocks=calls / 50, psnr=psnr + by, **GOOD)
    return [score(s, PROMPTS, CONDITIONS, *stores) for s in settings]


def test_score_is_mean_worst_and_fast(stores):
    """Over prompts; the fast ones beside."""
    first = measured(stores)[0]
    assert (first.psnr, first.psnr_worst, first.psnr_fast) == (30, 28, 28)
    assert (first.worst_prompt, first.prompts, first.complete) == (PROMPTS[0].text, 2, True)


def test_speedup_is_the_median_of_pairs(stores):
    """Each with its own uncached run."""
    for prompt, seconds in zip(PROMPTS, (1.0, 2.0), strict=True):
        fill(stores[1], SETTINGS[0], prompt, uncached_s=4.0, seconds=seconds)
    first = measured(stores)[0]
    assert (first.speedup, first.timed) == (3, 2)


def test_costs_at_targets(stores):
    """In calls and, with probes, in block evaluations; none where the points don't reach."""
    found = costs(measured(stores), 50)["m"]
    assert found["calls"]["30"] == 10
    assert found["calls"]["40"] == pytest.approx(20 * 2**0.5)
    assert found["block_calls"] == pytest.approx(found["calls"])
    assert found["calls_fast"]["30"] == pytest.approx(10 * 2 ** (2 / 6))
    assert (found["within"], found["settings"], found["state"]) == (2, 3, "ok")
    low = costs(measured(stores, psnrs=(20.0, 25.0, 29.0)), 50)["m"]["calls"]
    assert low == {"30": None, "35": None, "40": None}


def test_auto_is_compared_with_the_best_of_all_others(stores):
    """Whichever mode of `auto` and whichever other method is the cheapest at a target; none where one is missing."""
    methods = {
        "auto": {"calls": {"30": 8.0, "35": 12.0, "40": None}},
        "auto (target)": {"calls": {"30": None, "35": 10.0, "40": 15.0}},
        "dear": {"calls": {"30": 20.0, "35": 30.0, "40": None}},
        "near": {"calls": {"30": 12.0, "35": None, "40": None}},
    }
    found = lead(methods)
    assert found["30"] == {"auto": 8.0, "best": 12.0, "method": "near", "ratio": 1.5}
    assert found["35"] == {"auto": 10.0, "best": 30.0, "method": "dear", "ratio": 3.0}
    assert "40" not in found
    auto = [Setting("auto", "policy", f"at {c}", {"auto": c, "calls": c}) for c in (5, 10, 20)]
    scores = measured(stores) + measured(stores, auto)
    text = render(ABOUT, scores, 50)
    assert "At 30 dB `auto` needs 5.0 calls, the best other, m, 10.0: 2.00 times as many." in text


def test_incomplete_settings_stay_out_of_fronts(stores):
    """A mean over fewer prompts is another quantity."""
    fill(stores[0], SETTINGS[0], PROMPTS[1], calls=5, blocks=0.1, psnr=50.0, **GOOD)
    found = score(SETTINGS[0], PROMPTS, CONDITIONS, *stores)
    assert not found.complete
    assert costs([found], 50)["m"]["calls"]["40"] is None
    assert costs([found], 50)["m"]["state"] == "incomplete"


def test_noops_and_failures_are_told(stores):
    """A method that changes nothing, and one that raises."""
    idle, broken = (Setting(name, "diffusers", "x", {"m": name}) for name in ("idle", "broken"))
    for prompt in PROMPTS:
        fill(stores[0], idle, prompt, calls=50, blocks=1, psnr=99.0, **{**GOOD, "noop": True})
        fill(stores[0], broken, prompt, error="ValueError: no | batch")
    scores = [score(s, PROMPTS, CONDITIONS, *stores) for s in (idle, broken)]
    told = costs(scores, 50)
    assert (told["idle"]["state"], told["broken"]["state"]) == (
        "no-op",
        "failed: ValueError: no | batch",
    )


def test_what_is_worth_timing(stores):
    """The settings nearest to the targets."""
    scores = measured(stores, psnrs=(30.0, 36.0, 60.0))
    assert [s.label for s in worth_timing(SETTINGS, scores)] == ["at 10", "at 20"]


def test_tables_and_plot(stores, tmp_path):
    """The report has every method and setting, the noise floor apart, and a plot."""
    noise = Setting("noise", "control", "attention math", {"attention": "math"})
    for prompt in PROMPTS:
        fill(stores[0], noise, prompt, calls=50, blocks=1, psnr=70.0, **GOOD)
    scores = [*measured(stores), score(noise, PROMPTS, CONDITIONS, *stores)]
    text = render(ABOUT, scores, 50)
    assert "| m | 10.0 (5.00×) |" in text
    assert "attention math: 70.0 (worst 70.0) dB" in text
    columns = {line.count("|") for line in text.splitlines() if line.startswith("|")}
    assert columns == {13}
    report = as_json(ABOUT, scores, [*SETTINGS, noise], 50)
    assert report["scores"][0]["options"] == {"calls": 10}
    plot(scores, 50, "a model", tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000
