"""What xfuser can do with a model, told from the model's configuration files before anything is loaded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from warpcache_ray.errors import InvalidConfig
from warpcache_ray.parallel.layout import Layout

_WRAPPERS = "xfuser.model_executor.models.transformers"


@dataclass(frozen=True, slots=True)
class Support:
    """xfuser's `wrapper` of a transformer class and its `module`. `pads`: token counts that the ranks don't divide are
    padded; `guided`: cond and uncond are two calls, which `cfg` can make side by side."""

    module: str
    wrapper: str
    pads: bool
    guided: bool


SUPPORTED: dict[str, Support] = {
    "WanTransformer3DModel": Support(
        f"{_WRAPPERS}.transformer_wan", "xFuserWanTransformer3DWrapper", pads=True, guided=True
    ),
    "HunyuanVideoTransformer3DModel": Support(
        f"{_WRAPPERS}.transformer_hunyuan_video",
        "xFuserHunyuanVideoTransformer3DWrapper",
        pads=False,
        guided=False,
    ),
}


def check_layout(layout: Layout, folder: Path) -> None:
    """The model in a pipeline's folder can be shared out as `layout` says. Reads two JSON files.

    Raises:
        InvalidConfig: it can't; the message names the degree and what would work.
    """
    if layout.world_size == 1:
        return
    index = _read(folder / "model_index.json")
    kind = str(index.get("transformer", (None, None))[1])
    if kind not in SUPPORTED:
        known = ", ".join(SUPPORTED)
        raise InvalidConfig(
            f"parallel = {layout}: ranks can't share a {kind}, for which xfuser has no wrapper, only for: {known}; "
            "ulysses, ring and cfg must be 1",
            "parallel",
        )
    _check_degrees(layout, kind, _read(folder / "transformer" / "config.json"))


def _check_degrees(layout: Layout, kind: str, config: Mapping[str, Any]) -> None:
    heads: int = config["num_attention_heads"]
    if heads % layout.ulysses:
        fine = ", ".join(str(n) for n in range(1, heads + 1) if heads % n == 0)
        _refuse("ulysses", layout.ulysses, f"it must divide the model's {heads} heads: {fine}")
    if layout.cfg > 2:
        _refuse("cfg", layout.cfg, "there are two branches, cond and uncond; it must be 1 or 2")
    if layout.cfg == 2 and not SUPPORTED[kind].guided:
        _refuse("cfg", layout.cfg, f"{kind} has no uncond branch; it must be 1")
    if config.get("image_condition_type") == "token_replace":
        message = "xfuser's wrapper knows no image_condition_type 'token_replace'"
        raise InvalidConfig(
            f"parallel = {layout}: {message}; ulysses, ring and cfg must be 1", "parallel"
        )


def _refuse(name: str, degree: int, why: str) -> None:
    raise InvalidConfig(f"parallel.{name} = {degree}: {why}", f"parallel.{name}")


def _read(file: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise InvalidConfig(f"model.path: {file} can't be read: {error}", "model.path") from error
    return content
