"""Low-rank adapters (LoRAs) beside a pipeline's weights: all are loaded, one at most is worn."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from safetensors import SafetensorError
from torch import nn

from warpcache_ray.errors import InvalidConfig, InvalidRequest
from warpcache_ray.extras import need


def load_loras(pipeline: Any, places: Mapping[str, str]) -> None:
    """Loads the adapters in these files (or hub ids) under their names; none is worn then.

    Raises:
        InvalidConfig: peft isn't installed, the pipeline takes none, or a file holds none for it.
    """
    if not places:
        return
    need("peft", "model.loras")
    if not hasattr(pipeline, "load_lora_weights"):
        kind = type(pipeline).__name__
        raise InvalidConfig(f"model.loras = {list(places)}: {kind} takes no LoRAs", "model.loras")
    for name, place in places.items():
        try:
            pipeline.load_lora_weights(place, adapter_name=name)
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            where = f"model.loras.{name}"
            raise InvalidConfig(f"{where} = {place!r} can't be loaded: {error}", where) from error
        if name not in names_of(pipeline):
            where = f"model.loras.{name}"
            said = f"{where} = {place!r} has no weights for {type(pipeline).__name__}"
            raise InvalidConfig(said, where)
    pipeline.disable_lora()


def names_of(pipeline: Any) -> tuple[str, ...]:
    """Names of the adapters that a pipeline has."""
    if not hasattr(pipeline, "get_list_adapters"):
        return ()
    found: Mapping[str, list[str]] = pipeline.get_list_adapters()
    return tuple(sorted({name for names in found.values() for name in names}))


@contextmanager
def wearing(pipeline: Any, name: str | None, scale: float) -> Iterator[None]:
    """Within, the pipeline computes with the adapter, weighed by `scale`; afterwards with none, to the bit as if it had
    never been there.

    Raises:
        InvalidRequest: there is no such adapter.
    """
    if name is None:
        yield
        return
    known = names_of(pipeline)
    if name not in known:
        there = ", ".join(known) or "none"
        raise InvalidRequest(f"lora = {name!r} is unknown; the model's LoRAs: {there}", "lora")
    pipeline.set_adapters([name], [scale])
    pipeline.enable_lora()
    try:
        yield
    finally:
        pipeline.disable_lora()


def loras(transformer: nn.Module) -> tuple[Any, ...]:
    """The LoRA of each layer, with its scale; equal for equal features. Empty where none is worn; walks all modules
    where some are loaded."""
    if not getattr(transformer, "_hf_peft_config_loaded", False):
        return ()
    layers: Iterator[Any] = (each for each in transformer.modules() if hasattr(each, "lora_A"))
    worn = tuple(
        ()
        if layer.disable_adapters
        else (tuple(layer.active_adapters), tuple(layer.scaling.items()))
        for layer in layers
    )
    return worn if any(worn) else ()
