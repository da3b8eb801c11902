"""What is refused before anything is loaded."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from warpcache_ray.errors import InvalidConfig
from warpcache_ray.parallel.layout import Layout
from warpcache_ray.parallel.support import check_layout

WAN = {"num_attention_heads": 12}


def _folder(path: Path, kind: str, vae: str = "AutoencoderKLWan", **config: Any) -> Path:
    (path / "transformer").mkdir()
    index = {"transformer": ["diffusers", kind], "vae": ["diffusers", vae]}
    (path / "model_index.json").write_text(json.dumps(index))
    (path / "transformer" / "config.json").write_text(json.dumps(config))
    return path


@pytest.mark.parametrize(
    ("kind", "config", "layout", "field", "says"),
    [
        ("Wan", WAN, Layout(ulysses=8), "parallel.ulysses", "= 8: it must divide the model's 12"),
        ("Wan", WAN, Layout(ulysses=24), "parallel.ulysses", "12 heads: 1, 2, 3, 4, 6, 12"),
        ("Wan", WAN, Layout(cfg=3), "parallel.cfg", "= 3: there are two branches, cond and uncond"),
        ("HunyuanVideo", WAN, Layout(cfg=2), "parallel.cfg", "= 2: HunyuanVideo.* has no uncond"),
        (
            "HunyuanVideo",
            {**WAN, "image_condition_type": "token_replace"},
            Layout(ring=2),
            "parallel",
            "token_replace.*must be 1",
        ),
        ("Cosmos", WAN, Layout(cfg=2), "parallel.cfg", "= 2: Cosmos.* use cond's output before"),
        (
            "Cosmos",
            {**WAN, "controlnet_block_every_n": 7},
            Layout(ring=2),
            "parallel",
            "knows no controlnet_block_every_n 7.*must be 1",
        ),
        (
            "Cosmos",
            {**WAN, "vae": "AutoencoderKLCosmos"},
            Layout(ring=2, vae=True),
            "parallel.vae",
            "= True: DistVAE knows no AutoencoderKLCosmos, only: .*; it must be false",
        ),
        ("CogVideoX", WAN, Layout(ring=2), "parallel", "can't share a CogVideoXTr.*only: Wan.*Cos"),
    ],
)
def test_what_cannot_be_shared_is_refused(
    tmp_path: Path, kind: str, config: dict[str, Any], layout: Layout, field: str, says: str
) -> None:
    """The error names degree and value, and what would work."""
    folder = _folder(tmp_path, f"{kind}Transformer3DModel", **config)
    with pytest.raises(InvalidConfig, match=says) as caught:
        check_layout(layout, folder)
    assert caught.value.param == field


@pytest.mark.parametrize(
    "layout", [Layout(12), Layout(4, 3), Layout(ring=5), Layout(6, 1, 2, vae=True)]
)
def test_what_can_be_shared_passes(tmp_path: Path, layout: Layout) -> None:
    """Ring takes any number of ranks."""
    check_layout(layout, _folder(tmp_path, "WanTransformer3DModel", **WAN))


def test_one_rank_serves_any_model(tmp_path: Path) -> None:
    """It isn't even looked at."""
    check_layout(Layout(), tmp_path)


def test_a_folder_without_configuration_is_named(tmp_path: Path) -> None:
    """Rather than a layout."""
    with pytest.raises(InvalidConfig, match=r"model_index\.json can't be read"):
        check_layout(Layout(ulysses=2), tmp_path)


def test_checking_loads_no_torch() -> None:
    """It runs in processes that never compute."""
    code = "import sys, warpcache_ray.parallel.support, warpcache_ray.parallel.split\n"
    code += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
