"""A session's account: decisions by kind, and one by one."""

import json
import math

import pytest
import torch

from warpcache_ray.core.types import Action, Decision, Operator, Step, Where
from warpcache_ray.engine.stats import CacheStats

BLEND = (Operator.BLEND, Operator.SPATIAL)
DECISIONS = {
    "recompute": Decision(Action.RECOMPUTE, "warmup"),
    "reuse": Decision(Action.REUSE, "drift", 0.0123456, 0.08),
    "forecast": Decision(Action.WARP, "schedule", operators=(Operator.FORECAST,)),
    "blend+spatial": Decision(Action.WARP, "drift", math.inf, math.nan, BLEND),
    "warp": Decision(Action.WARP, "made up"),
}


@pytest.fixture
def stats():
    """Each decision once on cond, the first one again on uncond of another transformer and in one block."""
    stats = CacheStats({"name": "never"})
    for index, decision in enumerate(DECISIONS.values()):
        stats.add(Step(index), Where("transformer", "cond"), decision, 1, 1)
    first = DECISIONS["recompute"]
    stats.add(Step(9), Where("transformer_2", "uncond"), first, 1, 0)
    stats.add(Step(9), Where("transformer", "cond", 3), first, 1, 0)
    return stats


def test_a_decision_in_a_word():
    """The action, or how a warp approximates."""
    assert {kind: decision.kind for kind, decision in DECISIONS.items()} == {
        k: k for k in DECISIONS
    }


def test_by_branch(stats):
    """Whichever transformer or block it was."""
    cond = dict.fromkeys(DECISIONS, 1) | {"recompute": 2}
    assert stats.by_branch() == {"cond": cond, "uncond": {"recompute": 1}}
    assert sum(sum(kinds.values()) for kinds in stats.by_branch().values()) == len(stats.records)


def test_the_timeline_is_in_columns_and_json(stats):
    """Four digits are told; None where nothing was measured, or no finite number."""
    timeline = stats.timeline()
    assert json.loads(json.dumps(timeline, allow_nan=False)) == timeline
    assert list(timeline) == ["transformer.cond", "transformer_2.uncond", "transformer.cond.3"]
    assert timeline["transformer.cond"] == {
        "step": [0, 1, 2, 3, 4],
        "decision": list(DECISIONS),
        "drift": [None, 0.01235, None, None, None],
        "threshold": [None, 0.08, None, None, None],
        "reason": ["warmup", "drift", "schedule", "drift", "made up"],
    }


def test_a_timeline_is_small():
    """50 steps on two branches, in no more than a few kilobytes."""
    stats = CacheStats({"name": "worldcache"})
    drifts = torch.rand(50, generator=torch.Generator().manual_seed(0)).tolist()
    for step, drift in enumerate(drifts):
        for branch in ("cond", "uncond"):
            decision = Decision(Action.WARP, "drift", drift, drift / 3, (Operator.FORECAST,))
            stats.add(Step(step), Where("transformer", branch), decision, 1, 3)
    assert len(json.dumps(stats.timeline())) < 6000
