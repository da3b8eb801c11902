"""What Cosmos models are given but our tiny pipeline doesn't give them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from diffusers import CosmosTransformer3DModel
from groups import Group
from runs import forward
from torch import nn

VARIANTS: dict[str, dict[str, Any]] = {
    "1": {"in_channels": 4, "extra_pos_embed_type": "learnable", "use_crossattn_projection": False},
    "2.5": {
        "in_channels": 5,
        "extra_pos_embed_type": None,
        "img_context_dim_in": 12,
        "img_context_dim_out": 32,
    },
}


@pytest.fixture(params=VARIANTS)
def kind(request: pytest.FixtureRequest) -> str:
    """Cosmos-Predict1 masks texts, knows frame rates and embeds positions; 2.5 has a timestep for each frame, and
    looks at images beside the text."""
    name: str = request.param
    return name


@pytest.fixture
def variant(
    kind: str, folders: dict[str, Path], tmp_path: Path
) -> tuple[Path, CosmosTransformer3DModel]:
    """The tiny pipeline's folder with a transformer of that kind, and the transformer."""
    shutil.copytree(folders["cosmos"], tmp_path / "cosmos")
    config = CosmosTransformer3DModel.load_config(folders["cosmos"], subfolder="transformer")
    transformer = CosmosTransformer3DModel.from_config({**config, **VARIANTS[kind]})
    for weights in transformer.parameters():
        nn.init.normal_(weights, std=0.2)
    transformer.save_pretrained(tmp_path / "cosmos" / "transformer")
    return tmp_path / "cosmos", transformer


@pytest.mark.parametrize(("layout", "side"), [("ulysses", 4), ("ulysses", 6), ("ring", 4)])
def test_a_forward_of_two_ranks_is_that_of_one(
    pair: Group,
    kind: str,
    variant: tuple[Path, CosmosTransformer3DModel],
    layout: str,
    side: int,
) -> None:
    """Whatever comes by token, by frame, or for all; 12 tokens, and 27 that are padded."""
    folder, transformer = variant
    call = {"batch": 2, "side": side, "kind": kind}
    whole = forward(transformer, **call)
    for share in pair.run(layout, "forward", folder=str(folder), **call):
        assert abs(share - whole).max() <= 1e-5
