"""The map of a profile: what is in it, and that its numbers are the profile's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from warpcache_ray.tuning.sensitivity import sensitivity, write_sensitivity


def test_it_has_steps_branches_and_blocks(invent: Any, tmp_path: Path) -> None:
    """A number for each step (none for the first, which nothing foretells), and the same on disk."""
    profile = invent(12)
    found = sensitivity(profile)
    assert len(found["sigmas"]) == len(found["steps"]) == 50
    assert found["steps"][0] is None
    assert found["steps"][6] == pytest.approx(profile.chart.error(4, 5, 7), rel=1e-5)
    assert set(found["branches"]) == set(found["blocks"]) == {"cond", "uncond"}
    assert [len(own) for own in found["blocks"]["uncond"]] == [50] * 12
    matrix = profile.policy.gram.matrix()
    before, now, both = matrix[6, 6], matrix[7, 7], matrix[6, 7]
    change = float(((now + before - 2 * both) / now).sqrt())
    assert found["branches"]["cond"][7] == pytest.approx(change, rel=1e-4)
    path = tmp_path / "made" / "map.json"
    write_sensitivity(profile, path)
    assert json.loads(path.read_text()) == found
