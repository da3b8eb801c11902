"""Each contender on the tiny models, where what it computes is known beforehand."""

import diffusers
import numpy as np
import pytest

from warpcache_ray.bench.contender import Setting
from warpcache_ray.bench.measure import measure
from warpcache_ray.bench.rivals.diffusers_hooks import magcache_ratios
from warpcache_ray.bench.rivals.made import run

TAYLOR = {"config": "TaylorSeerCacheConfig", "cache_interval": 2, "disable_cache_before_step": 2}
MAG = {"config": "MagCacheConfig", "mag_ratios": [1.0] * 8, "max_skip_steps": 3}
DBCACHE = {"Fn_compute_blocks": 1, "Bn_compute_blocks": 0}
MASK = {**DBCACHE, "steps_computation_mask": [1, 1, 0, 0, 1, 0, 0, 1]}
ALWAYS = {"residual_diff_threshold": 9.0, "max_warmup_steps": 2}

KNOWN = [
    ("fewer_steps", {"steps": 4}, 4, 4 / 8),
    ("policy", {"name": "never"}, 8, 1),
    # Steps 0, 2, 4, 6 and the last.
    ("policy", {"name": "interval", "every": 2}, 5, 5 / 8),
    ("control", {"attention": "math"}, 8, 1),
    ("control", {"latents": 1e-6}, 8, 1),
    # Steps 0, 1, 3, 5 and 7.
    ("diffusers", {**TAYLOR, "use_lite_mode": True}, 5, 5 / 8),
    # The first step, then a quarter of the four blocks.
    ("diffusers", {"config": "FirstBlockCacheConfig", "threshold": 1e9}, 1, (4 + 7) / 32),
    # Steps 0, 1 and 5: the first block is left out too.
    ("diffusers", {**MAG, "retention_ratio": 0.25}, 3, 3 / 8),
    ("cache_dit", {**MASK, "steps_computation_policy": "static"}, 4, (4 * 4 + 4) / 32),
]


def score(kind, options, tiny, prompt, uncached, name="wan"):
    setting = Setting("a method", kind, "a setting", options)
    return measure(setting, prompt, tiny(name), uncached(name))


@pytest.mark.parametrize(("kind", "options", "calls", "blocks"), KNOWN)
def test_work_is_counted(kind, options, calls, blocks, tiny, prompt, uncached):
    """Calls and block evaluations of methods that replace other things are counted alike."""
    if kind == "cache_dit":
        pytest.importorskip("cache_dit")
    row = score(kind, options, tiny, prompt, uncached)
    assert "error" not in row
    assert (row["calls"], row["blocks"]) == (calls, pytest.approx(blocks))
    assert row["noop"] == (kind == "policy" and options["name"] == "never")


@pytest.mark.parametrize("calibrator", ["taylorseer", "foca"])
def test_cache_dit_calibrators(calibrator, tiny, prompt, uncached):
    """The same mask, another approximation of what is left out."""
    pytest.importorskip("cache_dit")
    static = {**MASK, "steps_computation_policy": "static"}
    rows = [
        score("cache_dit", {**static, **more}, tiny, prompt, uncached)
        for more in ({}, {"calibrator": calibrator})
    ]
    assert rows[0]["blocks"] == rows[1]["blocks"]
    assert rows[0]["psnr"] != rows[1]["psnr"]


@pytest.mark.parametrize("model", ["wan", "hunyuan"])
def test_cache_dit_leaves_nothing_behind(model, tiny, prompt, uncached):
    """It patches classes: those of other pipelines stay as they were, and the next plain run is bit-identical."""
    pytest.importorskip("cache_dit")
    kind = type(tiny(model).pipeline())
    call = kind.__call__
    row = score("cache_dit", {**DBCACHE, **ALWAYS}, tiny, prompt, uncached, model)
    assert row["calls"] < 8
    assert kind.__call__ is call
    plain = run(tiny(model).pipeline(), tiny(model).generation(prompt.text, prompt.seed))
    assert np.array_equal(plain.frames, uncached(model).frames)


@pytest.mark.parametrize(
    ("options", "least"),
    [
        ({**TAYLOR, "cache_identifiers": [r"blocks\.\d+\.(attn1|attn2|ffn)"]}, 5 / 8),
        ({"config": "SeaCacheConfig", "threshold": 1e9}, 0),
        (
            {"config": "FasterCacheConfig", "is_guidance_distilled": True, "attention_weight": 0.5},
            0.5,
        ),
        (
            {"config": "PyramidAttentionBroadcastConfig", "spatial_attention_block_skip_range": 2},
            0.5,
        ),
    ],
    ids=lambda value: value["config"] if isinstance(value, dict) else None,
)
def test_hooks_that_skip_parts(options, least, tiny, prompt, uncached):
    """Hooks inside the blocks: the work of the layers that they leave out is not counted."""
    row = score("diffusers", options, tiny, prompt, uncached)
    assert "error" not in row
    assert least <= row["blocks"] < 1


def test_no_op_is_noticed(tiny, prompt, uncached):
    """TaylorSeer's own patterns match nothing in Wan."""
    row = score("diffusers", TAYLOR, tiny, prompt, uncached)
    assert (row["noop"], row["psnr"], row["blocks"]) == (True, 99, 1)


def test_failure_is_a_row(tiny, prompt, uncached):
    """FasterCache wants cond and uncond in one batch, which Wan doesn't do; the bench says so and goes on."""
    row = score("diffusers", {"config": "FasterCacheConfig"}, tiny, prompt, uncached)
    assert "error" in row
    assert "psnr" not in row


def test_magcache_calibrates_itself(tiny, prompt):
    """One ratio a step, the first 1, from what its calibration mode prints for each branch."""
    conditions = tiny("wan")
    ratios = magcache_ratios(conditions.pipeline(), [conditions.generation(prompt.text, 1)])
    assert len(ratios) == conditions.steps
    assert ratios[0] == 1
    assert ratios[1:] != [1] * 7


def test_configurations_exist():
    """Those that the contenders files name."""
    names = ("TaylorSeer", "FirstBlock", "Mag", "Sea", "Faster")
    assert all(hasattr(diffusers, f"{name}CacheConfig") for name in names)
