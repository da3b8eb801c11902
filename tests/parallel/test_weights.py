"""Ranks that share a model load it in the forms that one loads it in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from groups import Group
from runs import generate

from warpcache_ray.engine.engine import Engine
from warpcache_ray.models.weights import Weights

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("layout", ["ulysses", "cfg"])
def test_two_ranks_wear_what_one_wears(
    pair: Group, folders: dict[str, Path], loras: dict[str, str], layout: str
) -> None:
    """A single file's weights and an adapter: the same latents, which are others than without it."""
    file = folders["wan"] / "transformer" / "diffusion_pytorch_model.safetensors"
    weights = Weights(folders["wan"], files={"transformer": str(file)}, loras={"ink": loras["ink"]})
    engine = Engine(weights.load("cpu"))
    alone, bare = generate(engine, lora="ink")["latents"], generate(engine)["latents"]
    told = {"folder": str(folders["wan"]), "lora": loras["ink"], "file": str(file)}
    for share in pair.run(layout, "dressed", **told):
        assert np.abs(share - alone).max() < 1e-4 < np.abs(bare - alone).max()
