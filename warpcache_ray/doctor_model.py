"""What `warpcache doctor --model` finds in a folder: what is missing, what the cache can do with the model, and why."""

from __future__ import annotations

import importlib
import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from warpcache_ray.doctor import Finding

_TRANSFORMERS = ("transformer", "transformer_2")
_WEIGHTS = ("*.safetensors", "*.bin", "*.gguf")


def model_findings(folder: Path) -> list[Finding]:
    """All that is to be said of a pipeline's folder. Weights aren't loaded."""
    try:
        index = _read(folder / "model_index.json")
    except (OSError, ValueError) as error:
        why = f"{folder / 'model_index.json'} can't be read ({error}); give the folder of a diffusers pipeline"
        return [Finding("model", "broken", why)]
    components = {name: kind for name, kind in index.items() if _is_component(kind)}
    found = [Finding("pipeline", "ok", str(index.get("_class_name")))]
    found += [_component(folder, name, kind[1]) for name, kind in components.items()]
    for name in _TRANSFORMERS:
        if name in components and (folder / name / "config.json").exists():
            found += _cache(name, components[name][1], _read(folder / name / "config.json"))
    if not any(name in components for name in _TRANSFORMERS):
        found.append(Finding("cache", "broken", "no transformer among the components: no DiT"))
    else:
        found.append(_branches(str(index.get("_class_name"))))
    return found


def _read(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(file.read_text())
    return content


def _is_component(kind: Any) -> bool:
    return isinstance(kind, list) and len(kind) == 2 and kind[1] is not None


def _component(folder: Path, name: str, kind: str) -> Finding:
    place = folder / name
    if not place.is_dir():
        return Finding(name, "broken", f"missing: {kind} belongs into {place}")
    if (place / "config.json").exists() and not any(any(place.rglob(w)) for w in _WEIGHTS):
        return Finding(name, "broken", f"no weights in {place} (looked for {', '.join(_WEIGHTS)})")
    return Finding(name, "ok", kind)


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
