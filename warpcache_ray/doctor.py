"""What is installed here, and what of it works."""

from __future__ import annotations

import importlib
import os
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

State = Literal["ok", "absent", "broken"]

_REQUIRED = ("torch", "diffusers", "transformers", "ray", "fastapi", "pydantic", "av")
_OPTIONAL = ("xfuser", "peft", "torchao", "dfloat11", "locust")


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report."""

    check: str
    state: State
    text: str


def findings() -> list[Finding]:
    """All checks, in order."""
    found = [Finding("python", "ok", f"{platform.python_version()} on {platform.machine()}")]
    found += [_package(name, "broken") for name in _REQUIRED]
    found += [_package(name, "absent") for name in _OPTIONAL]
    for check, run in (("devices", _devices), ("video", _video), ("demo model", _demo)):
        found += _guarded(check, run)
    found += _guarded("store", _store)
    return found


def _package(name: str, otherwise: State) -> Finding:
    try:
        return Finding(name, "ok", version(name))
    except PackageNotFoundError:
        return Finding(name, otherwise, "not installed")


def _guarded(check: str, run: Callable[[], Iterator[Finding]]) -> list[Finding]:
    try:
        return list(run())
    except Exception as error:
        return [Finding(check, "broken", f"{type(error).__name__}: {error}")]


def _devices() -> Iterator[Finding]:
    torch = importlib.import_module("torch")
    yield Finding("cpu", "ok", f"{os.cpu_count()} cores, {torch.get_num_threads()} torch threads")
    gpus = torch.cuda.device_count()
    names = ", ".join(torch.cuda.get_device_name(i) for i in range(gpus))
    yield Finding("cuda", "ok" if gpus else "absent", names or "no GPU")
    distributed = torch.distributed
    for backend, there in (
        ("nccl", distributed.is_nccl_available()),
        ("gloo", distributed.is_gloo_available()),
    ):
        yield Finding(
            backend, "ok" if there else "absent", "available" if there else "not built in"
        )


def _video() -> Iterator[Finding]:
    av = importlib.import_module("av")
    for codec in ("libx264", "libvpx-vp9"):
        there = codec in av.codecs_available
        yield Finding(codec, "ok" if there else "broken", "encoder" if there else "no encoder")


def _demo() -> Iterator[Finding]:
    from warpcache_ray.config import ModelConfig

    folder = ModelConfig("toyworld/wan").folder
    yield Finding("demo model", "ok" if folder else "broken", str(folder or "not in the package"))


def _store() -> Iterator[Finding]:
    yield Finding("store", "ok", "jobs live in the coordinator's memory; no server is needed")
