"""Which LoRAs a transformer works with: what makes its features others though its own weights stay."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn


def loras(transformer: nn.Module) -> tuple[Any, ...]:
    """The LoRA of each layer, with its scale; equal for equal features. Empty, at no cost, without LoRAs."""
    if not getattr(transformer, "_hf_peft_config_loaded", False):
        return ()
    layers: Iterator[Any] = (each for each in transformer.modules() if hasattr(each, "lora_A"))
    return tuple(
        (tuple(layer.active_adapters), layer.disable_adapters, tuple(layer.scaling.items()))
        for layer in layers
    )
