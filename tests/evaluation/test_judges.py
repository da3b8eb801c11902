"""Judges of the real classes, tiny and untrained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    ViTConfig,
    ViTModel,
)

from warpcache_ray.errors import InvalidConfig
from warpcache_ray.evaluation.judges import LAION, consistency, identity_of, judges_in

TINY = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
TINY |= {"num_attention_heads": 2, "image_size": 224, "patch_size": 32}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of each, as transformers writes them."""
    root = tmp_path_factory.mktemp("judges")
    torch.manual_seed(0)
    ViTModel(ViTConfig(**TINY), add_pooling_layer=False).save_pretrained(root / "dino")
    for name in ("clip-b32", "clip-l14"):
        config = CLIPVisionConfig(**TINY, projection_dim=8)
        CLIPVisionModelWithProjection(config).save_pretrained(root / name)
    head = {"weight": torch.zeros(1, 8), "bias": torch.tensor([5.0])}
    torch.save(head, root / "clip-l14" / LAION)
    return root


@pytest.fixture
def video() -> np.ndarray:
    """Five frames of noise, wider than high."""
    return np.random.default_rng(0).integers(0, 256, (5, 32, 48, 3), np.uint8)


def test_consistency_is_vbenchs_formula() -> None:
    """Of three frames: the second is at right angles to the first, the third is the first."""
    x, y = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 2.0])
    assert consistency(torch.stack([x, y, x])) == pytest.approx(((0 + 0) / 2 + (0 + 1) / 2) / 2)
    assert consistency(torch.stack([x, -x])) == 0.0
    assert consistency(torch.stack([x, 2 * x, x])) == pytest.approx(1.0)
    assert consistency(x[None]) == 1.0


def test_judges_measure_what_they_are_for(folder: Path, video: np.ndarray) -> None:
    """A still video is consistent in every model's eyes, a noisy one less; the head's rating is a tenth of ten."""
    judges = judges_in(folder)
    still = np.repeat(video[:1], 5, 0)
    for name in ("subject_consistency", "background_consistency"):
        assert judges[name](still) == pytest.approx(1.0, abs=1e-5)
        assert judges[name](video) < 0.9999
    assert judges["aesthetic_quality"](video) == pytest.approx(0.5)
    assert judges["temporal_flickering"](still) == 1.0


def test_without_judges_there_is_what_needs_none(folder: Path, tmp_path: Path) -> None:
    """And a broken one is no absent one."""
    assert set(judges_in(None)) == set(judges_in(tmp_path)) == {"temporal_flickering"}
    (tmp_path / "dino").mkdir()
    with pytest.raises(InvalidConfig, match=r"judges = .*dino.* can't be loaded"):
        judges_in(tmp_path)
    assert identity_of(folder) != identity_of(tmp_path)
