"""Packages that only some configurations need, and which of our extras brings each."""

from __future__ import annotations

import importlib.util

from warpcache_ray.errors import InvalidConfig

EXTRAS = {"torchao": "fp8", "dfloat11": "dfloat11", "peft": "lora"}


def need(package: str, where: str) -> None:
    """Refuses what a configuration's field asks for, if the package isn't there.

    Raises:
        InvalidConfig: it isn't; names the extra to install.
    """
    if importlib.util.find_spec(package) is None:
        install = f"pip install 'warpcache-ray[{EXTRAS[package]}]'"
        raise InvalidConfig(f"{where} needs {package}, which isn't installed: {install}", where)
