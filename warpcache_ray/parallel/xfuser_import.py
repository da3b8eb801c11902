"""Imports xfuser 0.7 for ranks on CPUs, for which it wasn't made.

It takes for granted that there is a CUDA device and Triton. Its sequence parallelism needs neither: what is missing
is put in its place before and after the import, in this process only.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import sys
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

_TRITON_ONLY = "xfuser.core.sparge_attention.block_mask"
_READERS_OF_GROUPS = (
    "xfuser.model_executor.layers.usp",
    "xfuser.core.distributed.fp8_comms",
    "xfuser.core.sparge_attention.head_balance",
)
"""Modules that take yunchang's process groups over only where they find CUDA."""


@cache
def import_xfuser(device: str) -> ModuleType:
    """xfuser, for ranks on `device` (cuda or cpu); a process can't have both.

    Raises:
        ImportError: it isn't installed (`pip install warpcache-ray[xdit]`).
    """
    if device == "cpu":
        if importlib.util.find_spec("triton") is None:
            sys.modules[_TRITON_ONLY] = _without_triton()
        _correct(_environment())
        _take_over()
    import xfuser

    # It narrates on stdout.
    for handler in logging.getLogger("xfuser").handlers:
        handler.setLevel(logging.ERROR)
    module: ModuleType = xfuser
    return module


def _without_triton() -> ModuleType:
    def refuse(*_: Any, **__: Any) -> None:
        raise ImportError("sparse attention needs triton")

    stand_in = ModuleType(_TRITON_ONLY)
    vars(stand_in)["get_block_map_meansim"] = refuse
    return stand_in


def _environment() -> Any:
    """xfuser.envs alone: the package's own import reads from it, so it has to be right before."""
    spec = importlib.util.find_spec("xfuser")
    if spec is None:
        raise ImportError("ranks that share a generation need xfuser: warpcache-ray[xdit]")
    bare = ModuleType("xfuser")
    bare.__path__ = list(spec.submodule_search_locations or ())
    sys.modules["xfuser"] = bare
    try:
        import xfuser.envs as envs

        return envs
    finally:
        del sys.modules["xfuser"]


def _correct(envs: Any) -> None:
    envs._is_cuda = lambda: False
    # Checked against the oldest CUDA that it supports.
    envs.get_device_version = lambda: "12.0"
    envs.get_torch_distributed_backend = lambda: "gloo"
    # Otherwise every sequence-parallel group is of size 1, without a word.
    envs.PACKAGES_CHECKER.packages_info["has_long_ctx_attn"] = True


def _take_over() -> None:
    from xfuser.core.distributed import attention_backend as attention
    from yunchang.globals import PROCESS_GROUP

    for name in _READERS_OF_GROUPS:
        vars(importlib.import_module(name))["PROCESS_GROUP"] = PROCESS_GROUP
    attention.register_attention_function(attention.AttentionBackendType.SDPA_FLASH)(_flash)


def _flash(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dropout_p: float,
    is_causal: bool,
    attention_kwargs: dict[str, Any] | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention and its log-sum-exp, by which ring merges the parts; xfuser's own calls CUDA's kernel."""
    attended: tuple[Tensor, Tensor] = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, dropout_p=dropout_p, is_causal=is_causal
    )
    return attended
