"""Which models ranks can share, told from the model's configuration files before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from warpcache_ray.errors import InvalidConfig
from warpcache_ray.model_folder import read_json
from warpcache_ray.parallel.layout import Layout

_XFUSER = "xfuser.model_executor.models.transformers"


@dataclass(frozen=True, slots=True)
class Support:
    """The `wrapper` by which ranks share a transformer class, and its `module`, xfuser's or ours. `pads`: token counts
    that the ranks don't divide are padded; `no_cfg`: why cond and uncond can't be computed side by side; `lacks`: the
    setting of the model that the wrapper doesn't know, and its value (None: any)."""

    module: str
    wrapper: str
    pads: bool
    no_cfg: str | None = None
    lacks: tuple[str, str | None] | None = None


SUPPORTED: dict[str, Support] = {
    "WanTransformer3DModel": Support(
        f"{_XFUSER}.transformer_wan", "xFuserWanTransformer3DWrapper", pads=True
    ),
    "HunyuanVideoTransformer3DModel": Support(
        f"{_XFUSER}.transformer_hunyuan_video",
        "xFuserHunyuanVideoTransformer3DWrapper",
        pads=False,
        no_cfg="has no uncond branch",
        lacks=("image_condition_type", "token_replace"),
    ),
    "CosmosTransformer3DModel": Support(
        "warpcache_ray.parallel.cosmos",
        "SharedCosmosTransformer3DModel",
        pads=True,
        no_cfg="is called by pipelines that use cond's output before they call uncond",
        # Residuals of a control network come for all tokens, into the midst of the blocks.
        lacks=("controlnet_block_every_n", None),
    ),
}

DECODED_TOGETHER = ("AutoencoderKLWan", "AutoencoderKLHunyuanVideo")
"""The VAEs of these models that DistVAE knows."""


def check_layout(layout: Layout, folder: Path) -> None:
    """The model in a pipeline's folder can be shared out as `layout` says. Reads two JSON files.

    Raises:
        InvalidConfig: it can't; the message names the degree and what would work.
    """
    if layout.world_size == 1:
        return
    index = read_json(folder / "model_index.json")
    kind = str(index.get("transformer", (None, None))[1])
    if kind not in SUPPORTED:
        known = ", ".join(SUPPORTED)
        _refuse_all(layout, f"ranks can't share a {kind}, only: {known}")
    _check_degrees(layout, kind, read_json(folder / "transformer" / "config.json"))
    vae = str(index.get("vae", (None, None))[1])
    if layout.vae and vae not in DECODED_TOGETHER:
        known = ", ".join(DECODED_TOGETHER)
        _refuse("vae", True, f"DistVAE knows no {vae}, only: {known}; it must be false")


def _check_degrees(layout: Layout, kind: str, config: Mapping[str, Any]) -> None:
    support = SUPPORTED[kind]
    heads: int = config["num_attention_heads"]
    if heads % layout.ulysses:
        fine = ", ".join(str(n) for n in range(1, heads + 1) if heads % n == 0)
        _refuse("ulysses", layout.ulysses, f"it must divide the model's {heads} heads: {fine}")
    if layout.cfg > 2:
        _refuse("cfg", layout.cfg, "there are two branches, cond and uncond; it must be 1 or 2")
    if layout.cfg == 2 and support.no_cfg:
        _refuse("cfg", layout.cfg, f"{kind} {support.no_cfg}; it must be 1")
    if support.lacks:
        name, refused = support.lacks
        value = config.get(name)
        if value is not None and refused in (None, value):
            _refuse_all(layout, f"{support.wrapper} knows no {name} {value!r}")


def _refuse(name: str, degree: int, why: str) -> None:
    raise InvalidConfig(f"parallel.{name} = {degree}: {why}", f"parallel.{name}")


def _refuse_all(layout: Layout, why: str) -> None:
    raise InvalidConfig(f"parallel = {layout}: {why}; ulysses, ring and cfg must be 1", "parallel")
