from __future__ import annotations

from pathlib import Path

import pytest
from diffusers import DiffusionPipeline

from warpcache_ray.bench.overhead import CALL, POLICIES, measure
from warpcache_ray.engine.install import find


def test_every_site_is_measured(folders: dict[str, Path]) -> None:
    """Skips and recomputes of each, beside plain calls and the probe's; the model is left as it was."""
    pipe = DiffusionPipeline.from_pretrained(folders["wan"])
    pipe.set_progress_bar_config(disable=True)
    names = list(pipe.transformer.state_dict())
    call = {**CALL, "height": 32, "width": 32, "num_frames": 9, "max_sequence_length": 16}
    found = measure(pipe, 1, call)
    assert set(found) == {*POLICIES, "probe_ms"}
    for site in POLICIES:
        costs = found[site]
        assert 0 < costs["skipped_ms"] < costs["computed_ms"]
        shares = costs["skipped_ms"] / costs["plain_ms"]
        assert costs["skipped_share"] == pytest.approx(shares, abs=0.01)
    assert found["output"]["skipped_ms"] < found["probe_ms"] < found["blocks"]["plain_ms"]
    assert find(pipe) is None
    assert list(pipe.transformer.state_dict()) == names
