"""What `warpcache doctor --model` finds in a folder: what is missing, what the cache can do with the model, and why."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from warpcache_ray.doctor import Finding
from warpcache_ray.errors import InvalidConfig
from warpcache_ray.model_folder import INDEX, components, read_json

_TRANSFORMERS = ("transformer", "transformer_2")


def model_findings(folder: Path) -> list[Finding]:
    """All that is to be said of a pipeline's folder. Weights aren't loaded."""
    try:
        pipeline = str(read_json(folder / INDEX).get("_class_name"))
        listed = list(components(folder))
    except InvalidConfig as error:
        why = f"{error.message}; give the folder of a diffusers pipeline"
        return [Finding("model", "broken", why)]
    found = [Finding("pipeline", "ok", pipeline)]
    found += [
        Finding(name, "broken", f"{kind}: there is {missing}")
        if missing
        else Finding(name, "ok", kind)
        for name, kind, missing in listed
    ]
    transformers = [(name, kind) for name, kind, _ in listed if name in _TRANSFORMERS]
    for name, kind in transformers:
        if (folder / name / "config.json").exists():
            found += _cache(name, kind, read_json(folder / name / "config.json"))
    if not transformers:
        return [*found, Finding("cache", "broken", "no transformer among the components: no DiT")]
    return [*found, _branches(pipeline), *_serving(pipeline)]


def _cache(name: str, kind: str, config: dict[str, Any]) -> Iterator[Finding]:
    from warpcache_ray.models import ADAPTERS
    from warpcache_ray.parallel.support import SUPPORTED

    check = f"{name}: cache"
    adapter = ADAPTERS.get(kind)
    if adapter is None:
        lists = "; ".join(_block_lists(kind, config)) or "no list of blocks"
        yield Finding(
            check, "absent", f"site output only: there is no adapter for {kind}. It has {lists}"
        )
    else:
        yield Finding(
            check, "ok", f"sites output, blocks, layer; blocks in {', '.join(adapter.block_lists)}"
        )
    if config.get("guidance_embeds"):
        yield Finding(f"{name}: guidance", "ok", "distilled: one branch, no uncond")
    shared = SUPPORTED.get(kind)
    if shared is None:
        known = ", ".join(SUPPORTED)
        yield Finding(
            f"{name}: ranks", "absent", f"several ranks can't share a {kind}, only: {known}"
        )
    else:
        yield Finding(f"{name}: ranks", "ok", f"several ranks share it by {shared.wrapper}")


def _block_lists(kind: str, config: dict[str, Any]) -> Iterator[str]:
    """What an adapter would have to name, read off the class without its weights."""
    from accelerate import init_empty_weights
    from torch import nn

    cls = getattr(importlib.import_module("diffusers"), kind, None)
    if cls is None:
        return
    with init_empty_weights():
        transformer = cls.from_config(config)
    for name, child in transformer.named_children():
        if isinstance(child, nn.ModuleList) and len(child):
            block = type(child[0])
            parameters = ", ".join(list(inspect.signature(block.forward).parameters)[1:])
            yield f"{name}: {len(child)} × {block.__name__}({parameters})"


def _branches(pipeline: str) -> Finding:
    kind = getattr(importlib.import_module("diffusers"), pipeline, None)
    if kind is None:
        return Finding("branches", "absent", f"diffusers has no {pipeline}")
    announced = "cache_context" in inspect.getsource(inspect.unwrap(kind.__call__))
    how = (
        "announced by the pipeline" if announced else "not announced; told by the text of each call"
    )
    return Finding("branches", "ok", how)


def _serving(pipeline: str) -> Iterator[Finding]:
    """What the engine asks of a pipeline, read off its class."""
    from warpcache_ray.models.pipelines import TEMPORAL, refusal

    kind = getattr(importlib.import_module("diffusers"), pipeline, None)
    if kind is None:
        return
    made = "".join(
        inspect.getsource(c.__init__) for c in kind.__mro__ if c.__module__ == kind.__module__
    )
    why = refusal(kind, lambda name: name in made)
    if why is not None:
        yield Finding("serving", "absent", f"in Python only (enable_dit_cache): {pipeline} {why}")
    else:
        makes = "videos" if any(name in made for name in TEMPORAL) else "images"
        yield Finding(
            "serving", "ok", f"{pipeline} has what the service asks of one; it makes {makes}"
        )
