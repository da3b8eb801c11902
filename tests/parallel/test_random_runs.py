"""Two ranks under whatever policies, parameters and sizes: they never part, and never wait for each other in vain."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from groups import Group, same_decisions
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from warpcache_ray.core.policies import POLICIES

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
_runs = st.fixed_dictionaries(
    {
        "spec": _specs,
        "size": _sizes,
        "num_inference_steps": st.integers(3, 10),
        "guidance_scale": st.sampled_from([1.0, 5.0]),
        "budget": st.none() | st.integers(0, 60_000),
        "seed": st.integers(0, 3),
    }
)
_LAYOUTS = [
    *(("ulysses", "wan"), ("ring", "wan"), ("cfg", "wan")),
    *(("ulysses", "hunyuan"), ("ulysses", "cosmos")),
]


def test_every_policy_may_be_drawn() -> None:
    """The table above misses none."""
    assert set(PARAMETERS) == set(POLICIES)


def _agree(
    pair: Group,
    folders: dict[str, Path],
    alone: Alone,
    where: tuple[str, str],
    case: dict[str, Any],
) -> None:
    layout, model = where
    case = dict(case)
    height, width, num_frames = case.pop("size")
    case |= {"height": height, "width": width, "num_frames": num_frames}
    splits = height * width // 256 * ((num_frames - 1) // 4 + 1) % 2 == 0
    if not splits and where in (("ring", "wan"), ("ulysses", "hunyuan")):
        case["width"] = 32
    first, second = pair.run(layout, "generate", folder=str(folders[model]), **case)
    assert first["decisions"] == second["decisions"]
    assert first["evictions"] == second["evictions"]
    np.testing.assert_array_equal(first["latents"], second["latents"])
    if case["budget"] is None:
        event(f"drifts at their threshold: {same_decisions(alone(model, **case), first)}")


_each_layout = pytest.mark.parametrize("where", _LAYOUTS, ids=" ".join)


@_each_layout
@settings(max_examples=10, deadline=None, derandomize=True, database=None)
@given(case=_runs)
def test_ranks_never_part(
    pair: Group,
    folders: dict[str, Path],
    alone: Alone,
    where: tuple[str, str],
    case: dict[str, Any],
) -> None:
    """A few dozen runs, the same ones each time."""
    _agree(pair, folders, alone, where, case)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@_each_layout
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(case=_runs)
def test_hundreds_of_runs(
    pair: Group,
    folders: dict[str, Path],
    alone: Alone,
    where: tuple[str, str],
    case: dict[str, Any],
) -> None:
    """Other ones each time."""
    _agree(pair, folders, alone, where, case)
