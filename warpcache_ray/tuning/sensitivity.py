"""Where a model can bear to be cached: by step, by branch, by block, from the search's uncached runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from warpcache_ray.tuning.search import Profile

DIGITS = 6


def sensitivity(profile: Profile) -> dict[str, Any]:
    """`steps`: the expected square error of the final latent if the step alone is left out. `branches`: the relative
    change of each branch's output since the step before. `blocks`: the same of what each block adds, for each branch.
    """
    gram = profile.policy.gram
    assert gram is not None
    matrix, n, chart = gram.matrix().numpy(), profile.steps, profile.chart
    branches = {}
    for i, branch in enumerate(gram.branches):
        own = matrix[i * n : (i + 1) * n, i * n : (i + 1) * n]
        power, beside = np.diag(own), np.diag(own, 1)
        change = np.sqrt(np.maximum(power[1:] + power[:-1] - 2 * beside, 0) / power[1:])
        branches[branch] = [0.0, *change.round(DIGITS).tolist()]
    # Nothing foretells the first step.
    alone = [chart.error(s - 1 if s else None, s, min(s + 2, n)) for s in range(n - 1)]
    return {
        "sigmas": list(profile.course.sigmas[:-1]),
        "steps": [None, *(float(f"{x:.{DIGITS}g}") for x in alone)],
        "branches": branches,
        "blocks": {branch: [list(own) for own in found] for branch, found in profile.blocks},
    }


def write_sensitivity(profile: Profile, path: Path) -> None:
    """Writes the map as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(sensitivity(profile)) + "\n")
