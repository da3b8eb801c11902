"""The layouts that configs/*.yaml name for 1, 2, 4 and 8 GPUs, against the real models' shapes."""

from __future__ import annotations

import json
import re
from math import lcm
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from warpcache_ray.config import ServiceConfig, load_application, parse_config
from warpcache_ray.parallel.split import Split
from warpcache_ray.parallel.support import SUPPORTED, check_layout

CONFIGS = Path(__file__).parents[1] / "configs"
GPUS = (1, 2, 4, 8)
_LAYOUT = re.compile(r"^ *# (\d) GPUs?: +({.*})$", re.MULTILINE)


class Model(NamedTuple):
    """A published model: its transformer's class, that one's heads, pixels and frames that a token spans, and what else
    of its configuration layouts depend on."""

    kind: str
    heads: int
    side: int
    frames: int
    config: dict[str, Any] = {}  # noqa: RUF012 (nobody writes into it)


_LATENT_CONCAT = {"image_condition_type": "latent_concat"}
MODELS = {
    "wan": Model("WanTransformer3DModel", 40, 16, 4),
    "wan-i2v": Model("WanTransformer3DModel", 40, 16, 4),
    "wan22": Model("WanTransformer3DModel", 40, 16, 4),
    "wan22-ti2v": Model("WanTransformer3DModel", 24, 32, 4),
    "hunyuan": Model("HunyuanVideoTransformer3DModel", 24, 16, 4),
    "hunyuan-i2v": Model("HunyuanVideoTransformer3DModel", 24, 16, 4, _LATENT_CONCAT),
    "cosmos": Model("CosmosTransformer3DModel", 16, 16, 4),
    "skyreels": Model("SkyReelsV2Transformer3DModel", 40, 16, 4),
    "hunyuan15": Model("HunyuanVideo15Transformer3DModel", 16, 16, 4),
    "ltx": Model("LTXVideoTransformer3DModel", 32, 32, 8),
    "cogvideox": Model("CogVideoXTransformer3DModel", 48, 16, 4),
    "mochi": Model("MochiTransformer3DModel", 24, 16, 6),
    "kandinsky": Model("Kandinsky5Transformer3DModel", 28, 16, 4),
    "flux": Model("FluxTransformer2DModel", 24, 16, 1),
    "qwen-image": Model("QwenImageTransformer2DModel", 24, 16, 1),
    "sd3": Model("SD3Transformer2DModel", 38, 16, 1),
    "hunyuandit": Model("HunyuanDiT2DModel", 16, 16, 1),
}


def layouts(name: str) -> dict[int, ServiceConfig]:
    """The configuration with each of the layouts in its comments, by how many GPUs they are for."""
    text = (CONFIGS / f"{name}.yaml").read_text()
    args = yaml.safe_load(text)["applications"][0]["args"]
    found = _LAYOUT.findall(text)
    return {int(gpus): parse_config({**args, **yaml.safe_load(chosen)}) for gpus, chosen in found}


def test_every_family_is_here() -> None:
    """But the demo models, which run on CPU."""
    served = {p.stem for p in CONFIGS.glob("*.yaml") if not p.stem.startswith("toyworld")}
    assert served == set(MODELS)


@pytest.mark.parametrize("name", MODELS)
def test_a_layout_for_each_number_of_gpus(name: str, tmp_path: Path) -> None:
    """Ranks × replicas are as many as the GPUs, the ranks can share the model (heads, branches), and the size that
    requests get by default can be shared out. What stands in the file is one of them."""
    model, found = MODELS[name], layouts(name)
    assert tuple(found) == GPUS
    (tmp_path / "transformer").mkdir()
    index = {"transformer": ["diffusers", model.kind], "vae": ["diffusers", "AutoencoderKLWan"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    config = {"num_attention_heads": model.heads, **model.config}
    (tmp_path / "transformer" / "config.json").write_text(json.dumps(config))
    for gpus, service in found.items():
        layout = service.parallel
        assert layout.world_size * int(service.replicas) == gpus
        check_layout(layout, tmp_path)
        if layout.world_size > 1:
            defaults, ranks = service.model.defaults, layout.ulysses * layout.ring
            pads = SUPPORTED[model.kind].pads and layout.ring == 1
            size = {n: getattr(defaults, n) for n in ("height", "width", "num_frames")}
            Split(ranks, model.side, model.frames, pads=pads).check(**size)
    chosen = load_application(CONFIGS / f"{name}.yaml")
    same = [c for c in found.values() if c.parallel == chosen.parallel]
    assert chosen.replicas in {c.replicas for c in same}


@pytest.mark.parametrize("name", MODELS)
def test_defaults_can_be_made(name: str) -> None:
    """Each is a size that the model makes; images have one frame, and are PNG."""
    served, (_, _, side, frames, _) = load_application(CONFIGS / f"{name}.yaml").model, MODELS[name]
    for length in (served.defaults.height, served.defaults.width):
        assert length is not None
        assert length % lcm(16, side) == 0
    image = served.defaults.num_frames is None
    assert ((served.defaults.num_frames or 1) - 1) % frames == 0
    assert image == (served.limits.num_frames == 1) == (served.defaults.output_format == "png")
