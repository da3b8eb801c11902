"""Ranks that share a generation through xfuser: one process per rank, nccl between GPUs, gloo between CPUs.

Rank 0 opens a store on a free port, the others connect to it, and all join. Ranks stand as xfuser puts them: those of
one sequence-parallel group side by side, cond's group before uncond's.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import Store, TCPStore

from warpcache_ray.models import adapter_for, class_name
from warpcache_ray.models.seam import arguments_of
from warpcache_ray.models.weights import TRANSFORMERS, Weights
from warpcache_ray.parallel.layout import Layout
from warpcache_ray.parallel.split import Split
from warpcache_ray.parallel.support import SUPPORTED
from warpcache_ray.parallel.xfuser_import import import_xfuser


@dataclass(frozen=True, slots=True)
class GroupHalves:
    """Cond's and uncond's half; `group` holds this rank and its counterpart in the other half."""

    group: Any

    @property
    def branch(self) -> Literal["cond", "uncond"]:
        """What this rank's half computes."""
        return "cond" if self.group.rank_in_group == 0 else "uncond"

    def exchange(self, output: Tensor) -> tuple[Tensor, Tensor]:
        """Both halves' outputs; they travel between the devices."""
        cond, uncond = _gathered(output, self.group.device_group, 2)
        return cond, uncond

    def tell(self, notes: Any) -> tuple[Any, Any]:
        """Both halves' notes; they travel between the hosts."""
        both: list[Any] = [None, None]
        dist.all_gather_object(both, notes, group=self.group.cpu_group)
        return both[0], both[1]


@dataclass(frozen=True, slots=True)
class GroupRanks:
    """The ranks of xfuser's sequence-parallel group `tokens`, within the replica's `world`."""

    tokens: Any
    world: Any
    halves: GroupHalves | None
    decode_together: bool

    @property
    def index(self) -> int:
        """Place in the group."""
        return int(self.tokens.rank_in_group)

    @property
    def size(self) -> int:
        """Ranks of the group."""
        return int(self.tokens.world_size)

    def gather(self, values: Tensor) -> Tensor:
        """(ranks, ...) on the CPU: it goes from host to host, and a device waits for nothing else."""
        return torch.stack(_gathered(values.cpu(), self.tokens.cpu_group, self.size))

    def whole(self, tokens: Tensor) -> Tensor:
        """The group's tokens, from device to device."""
        return torch.cat(_gathered(tokens, self.tokens.device_group, self.size), 1)

    def broadcast(self, word: int) -> int:
        """Rank 0's word."""
        told = torch.tensor([word])
        dist.broadcast(told, src=0, group=self.world.cpu_group)
        return int(told)


def _gathered(mine: Tensor, group: Any, size: int) -> list[Tensor]:
    mine = mine.contiguous()
    all_of_them = [torch.empty_like(mine) for _ in range(size)]
    dist.all_gather(all_of_them, mine, group=group)
    return all_of_them


@dataclass(frozen=True, slots=True)
class Member:
    """A rank's place in a group that has come together."""

    layout: Layout
    device: str
    ranks: GroupRanks

    def load(self, weights: Weights) -> Any:
        """The pipeline, its transformers sharing tokens with the other ranks'. Check the layout before:
        `support.check_layout`.

        Raises:
            InvalidConfig: it can't be loaded.
        """
        pipeline = weights.load(self.device, _wrapper)
        for name in TRANSFORMERS:
            if getattr(pipeline, name, None) is not None:
                _guard(getattr(pipeline, name), pipeline, self.layout)
        _enter_runtime(pipeline, self.layout)
        if self.layout.vae:
            self._share_decoding(pipeline.vae)
        return pipeline

    def split(self, pipeline: Any) -> Split:
        """How the pipeline's videos are shared out: which sizes can be made."""
        return split_of(pipeline, self.layout)

    def _share_decoding(self, vae: nn.Module) -> None:
        """From now on a call of `vae.decode` is made by all ranks, and gives each the whole video."""
        from distvae.vae import parallelize_decoder

        parallelize_decoder(vae, self.ranks.world.device_group)

    def leave(self) -> None:
        """Dissolves the groups; every rank does. The process can join another layout afterwards."""
        from xfuser.core.distributed import parallel_state as state

        state.destroy_model_parallel()
        state.destroy_distributed_environment()


def open_store(host: str = "127.0.0.1") -> TCPStore:
    """What rank 0 opens for a group, on a free port of `host`; its `port` is told to the others."""
    return TCPStore(host, 0, is_master=True, wait_for_workers=False)


def connect(host: str, port: int) -> TCPStore:
    """The store that rank 0 opened."""
    return TCPStore(host, port, is_master=False)


def join(
    layout: Layout,
    rank: int,
    store: Store,
    device: Literal["cpu", "cuda"] = "cpu",
) -> Member:
    """Comes together with the other `layout.world_size` - 1 ranks that join through `store`. With device cuda a process
    sees one GPU, its own.

    Raises:
        ImportError: xfuser isn't installed.
    """
    import_xfuser(device)
    from xfuser.core.distributed import parallel_state as state

    backend = "nccl" if device == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=layout.world_size)
    state.init_distributed_environment(
        rank=rank, world_size=layout.world_size, local_rank=0, backend=backend
    )
    state.initialize_model_parallel(
        classifier_free_guidance_degree=layout.cfg,
        ulysses_degree=layout.ulysses,
        ring_degree=layout.ring,
        backend=backend,
    )
    halves = GroupHalves(state.get_cfg_group()) if layout.cfg == 2 else None
    ranks = GroupRanks(state.get_sp_group(), state.get_world_group(), halves, layout.vae)
    return Member(layout, device, ranks)


def split_of(pipeline: Any, layout: Layout) -> Split:
    """How a pipeline's videos are cut for a layout."""
    config = pipeline.transformer.config
    patch = config.patch_size
    side, depth = (patch, config.patch_size_t) if isinstance(patch, int) else (patch[-1], patch[0])
    # With ring no rank sees all keys, so none can leave out those of the padding.
    pads = SUPPORTED[class_name(pipeline.transformer)].pads and layout.ring == 1
    # Wan 2.2's VAE puts patches of pixels together last, outside of what is shared out.
    patched = pipeline.vae.config.get("patch_size") or 1
    spatial = pipeline.vae_scale_factor_spatial
    return Split(
        layout.ulysses * layout.ring,
        spatial * side,
        pipeline.vae_scale_factor_temporal,
        depth,
        pads,
        layout.world_size * spatial * patched if layout.vae else 1,
    )


def _wrapper(kind: str) -> Any:
    support = SUPPORTED[kind]
    return getattr(importlib.import_module(support.module), support.wrapper)


def _guard(transformer: nn.Module, pipeline: Any, layout: Layout) -> None:
    """Refuses, at its calls, sizes that can't be shared out, before any rank waits for another; and where shares end in
    padding, keeps attention from it."""
    split, adapter = split_of(pipeline, layout), adapter_for(transformer)
    assert adapter is not None
    grid_of = adapter.grid
    attention: dict[str, Any] = {}
    if split.pads:
        blocks: Any = getattr(transformer, adapter.block_lists[0])
        for block in blocks:
            block.attn1.processor.attention_kwargs = attention

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        latent = arguments_of(module, args, kwargs)["hidden_states"]
        frames, rows, columns = latent.shape[2:]
        spatial, temporal = pipeline.vae_scale_factor_spatial, pipeline.vae_scale_factor_temporal
        split.check(rows * spatial, columns * spatial, (frames - 1) * temporal + 1)
        tokens = prod(grid_of(module.config, latent))
        attention["valid_kv_len"] = tokens if tokens % split.ranks else None

    transformer.register_forward_pre_hook(before, with_kwargs=True)


def _enter_runtime(pipeline: Any, layout: Layout) -> None:
    """Tells xfuser's attention, which reads it from a global, how to work."""
    from xfuser import xFuserArgs
    from xfuser.core.distributed import initialize_runtime_state

    config, _ = xFuserArgs(
        model="",
        ulysses_degree=layout.ulysses,
        ring_degree=layout.ring,
        use_cfg_parallel=layout.cfg == 2,
        # Ring merges parts by their log-sum-exp, which only this one of the two gives.
        attention_backend="SDPA_FLASH" if layout.ring > 1 else "SDPA",
    ).create_config()
    initialize_runtime_state(pipeline, config)
