"""Two ranks under whatever policies, parameters and sizes: they never part, and never wait for each other in vain;
whatever rank 0 is told on the way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from groups import Group
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from runs import same_decisions, same_on_both

from warpcache_ray.core.policies import POLICIES
from warpcache_ray.engine.events import Control

Alone = Callable[..., dict[str, Any]]

_thresholds = st.floats(0.001, 0.6)
_sites = st.sampled_from(["output", "blocks", "layer"])
_flags = st.booleans()
_early = {"warmup": st.integers(0, 3), "max_skips": st.none() | st.integers(1, 4)}

PARAMETERS: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "never": {},
    "interval": {"every": st.integers(1, 4)},
    "first_block": {"threshold": _thresholds, "probe_depth": st.integers(1, 2), **_early},
    "teacache": {"threshold": _thresholds, **_early},
    "easycache": {"threshold": _thresholds, "space": st.sampled_from(["residual", "velocity"])},
    "magcache": {"ratios": st.just((0.98,) * 10), "threshold": _thresholds, **_early},
    "taylorseer": {"interval": st.integers(1, 4), "order": st.integers(0, 2), "site": _sites},
    "dicache": {"threshold": _thresholds, "retention": st.floats(0, 0.4)},
    "worldcache": {
        "threshold": _thresholds,
        "warp_from": st.integers(0, 4),
        **{name: _flags for name in ("cfc", "swd", "osi", "ats", "warp")},
        **_early,
    },
    "warpcache": {
        "base_threshold": st.floats(0.002, 0.1),
        "warp_threshold": st.floats(0, 0.002),
        "min_threshold": st.just(0.001),
        "metric": st.sampled_from(["cosine", "l2"]),
    },
    "lemica": {"schedule": st.just((0, 2, 3))},
    "guidance": {"every": st.integers(1, 4), "retention": st.floats(0, 0.5)},
    "auto": {"max_calls": st.none() | st.integers(1, 6)},
}

_specs = st.sampled_from(sorted(PARAMETERS)).flatmap(
    lambda name: st.fixed_dictionaries({"name": st.just(name), **PARAMETERS[name]})
)
_sizes = st.sampled_from([(32, 32, 9), (32, 48, 5), (64, 32, 1), (48, 48, 9), (48, 48, 13)])
_steps = st.integers(1, 10)
_cancels = st.just(Control(cancel=True).word)
_words = st.dictionaries(_steps, st.integers(0, 3) | _cancels, max_size=4)
"""After which steps rank 0 is told what: an epoch, be it an old one, or to end."""


def _runs(
    specs: st.SearchStrategy[Any], words: st.SearchStrategy[dict[int, int]]
) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(
        {
            "spec": specs,
            "words": words,
            "size": _sizes,
            "num_inference_steps": st.integers(3, 10),
            "guidance_scale": st.sampled_from([1.0, 5.0]),
            "budget": st.none() | st.integers(0, 60_000),
            "seed": st.integers(0, 3),
        }
    )


_cached = _runs(_specs, _words)
_uncached = _runs(
    st.just({"name": "never"}), st.dictionaries(_steps, _cancels, min_size=1, max_size=3)
).filter(lambda case: min(case["words"]) < case["num_inference_steps"])
_LAYOUTS = [
    *(("ulysses", "wan"), ("ring", "wan"), ("cfg", "wan")),
    *(("ulysses", "hunyuan"), ("ulysses", "cosmos")),
]


def test_every_policy_may_be_drawn() -> None:
    """The table above misses none."""
    assert set(PARAMETERS) == set(POLICIES)


def _sized(case: dict[str, Any], where: tuple[str, str]) -> dict[str, Any]:
    """The case with a size that can be split there."""
    height, width, num_frames = case["size"]
    splits = height * width // 256 * ((num_frames - 1) // 4 + 1) % 2 == 0
    if not splits and where in (("ring", "wan"), ("ulysses", "hunyuan")):
        width = 32
    sizes = {"height": height, "width": width, "num_frames": num_frames}
    return {name: value for name, value in case.items() if name != "size"} | sizes


def _agree(
    pair: Group,
    folders: dict[str, Path],
    alone: Alone,
    where: tuple[str, str],
    case: dict[str, Any],
) -> dict[str, Any]:
    """Both ranks do as one alone would; where they were cancelled they go on, until all steps are made."""
    layout, model = where
    first, second = pair.run(layout, "generate", folder=str(folders[model]), **case)
    same_on_both(first, second)
    if case["budget"] is None:
        one = alone(model, **case)
        assert [one[told] for told in ("end", "losses")] == [first["end"], first["losses"]]
        event(f"drifts at their threshold: {same_decisions(one, first)}")
    if first["step"] == case["num_inference_steps"]:
        return first
    rest = {**case, "checkpoint": first["checkpoint"]}
    return _agree(pair, folders, alone, where, rest)


def _end_alike(
    pair: Group,
    folders: dict[str, Path],
    alone: Alone,
    where: tuple[str, str],
    case: dict[str, Any],
) -> None:
    """However often it was cancelled, the run ends as one that never was."""
    last = _agree(pair, folders, alone, where, case)
    whole = _agree(pair, folders, alone, where, {**case, "words": {}})
    np.testing.assert_array_equal(last["latents"], whole["latents"])


_each_layout = pytest.mark.parametrize("where", _LAYOUTS, ids=" ".join)
_few = settings(deadline=None, derandomize=True, database=None)
_many = settings(deadline=None, suppress_health_check=list(HealthCheck))


@_each_layout
@settings(_few, max_examples=10)
@given(case=_cached)
def test_ranks_never_part(
    pair: Group,
    folders: dict[str, Path],
    alone: Alone,
    where: tuple[str, str],
    case: dict[str, Any],
) -> None:
    """A few dozen runs, the same ones each time."""
    _agree(pair, folders, alone, where, _sized(case, where))


@_each_layout
@settings(_few, max_examples=3)
@given(case=_uncached)
def test_uncached_runs_go_on_to_the_same_bytes(
    pair: Group,
    folders: dict[str, Path],
    alone: Alone,
    where: tuple[str, str],
    case: dict[str, Any],
) -> None:
    """From their checkpoints, on the layout that they began on."""
    _end_alike(pair, folders, alone, where, _sized(case, where))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@_each_layout
@settings(_many, max_examples=150)
@given(case=_cached)
def test_hundreds_of_runs(
    pair: Group,
    folders: dict[str, Path],
    alone: Alone,
    where: tuple[str, str],
    case: dict[str, Any],
) -> None:
    """Other ones each time."""
    _agree(pair, folders, alone, where, _sized(case, where))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@_each_layout
@settings(_many, max_examples=50)
@given(case=_uncached)
def test_dozens_of_uncached_runs_go_on_to_the_same_bytes(
    pair: Group,
    folders: dict[str, Path],
    alone: Alone,
    where: tuple[str, str],
    case: dict[str, Any],
) -> None:
    """Other ones each time."""
    _end_alike(pair, folders, alone, where, _sized(case, where))
