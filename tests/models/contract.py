"""What the cache promises, tried on one model: each check raises AssertionError where a promise is broken."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from toy import Loop, Toy
from toys import TOYS

from warpcache_ray.core.types import Site
from warpcache_ray.engine.install import Installation
from warpcache_ray.errors import InvalidPolicy
from warpcache_ray.models import adapter_for
from warpcache_ray.policy_spec import parse_policy

POLICIES: dict[str, dict[str, Any]] = {
    "never": {},
    "interval": {"every": 2},
    "first_block": {"threshold": 10.0, "max_skips": 2},
    "worldcache": {"threshold": 10.0, "warp": True, "warp_from": 2},
    "warpcache": {"base_threshold": 10.0, "warp_threshold": 0.0},
    "dicache": {"threshold": 10.0, "retention": 0.0},
    "teacache": {"threshold": 10.0},
    "easycache": {"threshold": 10.0, "warmup": 2},
    "magcache": {"retention": 0.0},
    "taylorseer": {"interval": 3},
    "lemica": {"schedule": (0, 2, 4)},
    "guidance": {"every": 3, "retention": 0.2},
    "auto": {"max_calls": 3},
}
"""Each policy with parameters under which it skips as often as it may."""

SITES = tuple(site.value for site in Site)


def model(name: str, dtype: torch.dtype = torch.float32) -> Loop:
    """A fresh toy."""
    toy = TOYS[name]
    return Loop(toy, toy.build().to(dtype))


@contextmanager
def cached(loop: Loop, policy: str = "never", **parameters: Any) -> Iterator[Installation]:
    """The cache in a toy."""
    installation = Installation(loop, parse_policy({"name": policy, **parameters}))
    try:
        yield installation
    finally:
        installation.remove()


@functools.cache
def plain(name: str, dtype: torch.dtype = torch.float32) -> Tensor:
    """What a toy makes that no cache was ever in."""
    made = model(name, dtype)()
    assert made.isfinite().all()
    return made


def off_and_never_change_nothing(name: str) -> None:
    """Off, `never` and off again, at every site: the same bits, the same modules, all calls counted as computed."""
    loop = model(name)
    names = [n for n, _ in loop.transformer.named_modules()]
    with cached(loop) as installation:
        assert torch.equal(loop(), plain(name))
        assert installation.last is not None
        assert installation.last.stats.share_of_blocks == 1.0
        assert [n for n, _ in loop.transformer.named_modules()] == names
    assert torch.equal(loop(), plain(name))


def site_skips(name: str, site: str) -> None:
    """Blocks that the account calls skipped aren't called, and those it calls run are; what comes out is finite,
    another than uncached, and the same again."""
    loop, calls = model(name), []
    adapter = adapter_for(loop.transformer)
    assert adapter is not None
    for each in adapter.block_lists:
        for block in getattr(loop.transformer, each):
            block.register_forward_hook(lambda *_: calls.append(1))
    with cached(loop, "taylorseer", site=site, interval=3) as installation:
        first = loop()
        assert installation.last is not None
        stats = installation.last.stats
        assert stats.blocks_run == len(calls)
        assert stats.hits > 0
        assert stats.blocks_skipped > 0
        assert first.isfinite().all()
        assert not torch.equal(first, plain(name))
        assert torch.equal(loop(), first)


def policy_runs(name: str, policy: str) -> None:
    """It runs, skips where it has what it needs, and makes the same twice, with another request in between."""
    loop = model(name)
    with cached(loop, policy, **POLICIES[policy]) as installation:
        first = loop()
        assert first.isfinite().all()
        assert installation.last is not None
        assert (installation.last.stats.hits > 0) == (policy != "never")
        loop(seed=1)
        assert torch.equal(loop(), first)


def reuse_is_exact(name: str) -> None:
    """On an unchanged call a skip gives what the recompute gave, also where blocks after it read the tokens beside the
    video's."""
    for blocks in ((0, None), (1, None), (0, 2), (0, 1)):
        loop = model(name)
        adapter = adapter_for(loop.transformer)
        assert adapter is not None
        if adapter.to_the_end and blocks[1] is not None:
            with (
                pytest.raises(InvalidPolicy, match="its end must be None"),
                cached(loop, "interval", blocks=blocks),
            ):
                pass
            continue
        made: list[Tensor] = []
        with cached(loop, "interval", every=2, warmup=0, cooldown=0, blocks=blocks) as installation:
            loop.scheduler.set_timesteps(2)
            generator = torch.Generator().manual_seed(3)
            latent = torch.randn(*loop.toy.latent, generator=generator)
            text = torch.randn(1, 5, loop.toy.text, generator=generator)
            with torch.no_grad(), installation.session(installation.policy) as session:
                for index in range(2):
                    loop.scheduler._step_index = index
                    made.append(loop.call(latent, loop.scheduler.timesteps[0], text))
            assert [r.decision.skips for r in session.stats.records] == [False, True]
        torch.testing.assert_close(made[1], made[0], atol=1e-4, rtol=1e-4)


def branches_are_apart(name: str) -> None:
    """Nothing is announced; still a skipped call gives what its own branch gave last."""
    loop = model(name)
    made: list[Tensor] = []
    inner = loop.call
    loop.call = lambda *args: made.append(inner(*args)) or made[-1]  # type: ignore[assignment,func-returns-value]
    reuse = {"site": "output", "order": 0, "interval": 2, "warmup": 1}
    with (
        cached(loop, "taylorseer", **reuse) as installation,
        installation.session(installation.policy) as session,
    ):
        loop()
        assert {where.branch for where in session.states} == {"cond", "uncond"}
    last: dict[str, Tensor] = {}
    for record, out in zip(session.stats.records, made, strict=True):
        if record.decision.skips:
            assert torch.equal(out, last[record.branch])
        last[record.branch] = out
    assert not torch.equal(last["cond"], last["uncond"])


def text_tells_the_branch(name: str) -> None:
    """Of a bare transformer, without a scheduler that knows the step, as well."""
    loop = model(name)
    installation = Installation(loop.transformer, parse_policy({"name": "interval", "every": 2}))
    try:
        loop()
        assert installation.last is not None
        records = installation.last.stats.records
        assert [(r.step, r.branch) for r in records[:4]] == [
            (0, "cond"),
            (0, "uncond"),
            (1, "cond"),
            (1, "uncond"),
        ]
        assert any(r.decision.skips for r in records)
    finally:
        installation.remove()


def an_exception_leaves_no_trace(name: str) -> None:
    """A run that dies in the middle does not poison the next one."""
    loop = model(name)
    with cached(loop, "interval", every=2):
        clean = loop()

        def fail(index: int) -> None:
            if index == 2:
                raise RuntimeError("mid-run")

        loop.after_step = fail
        with pytest.raises(RuntimeError, match="mid-run"):
            loop(seed=5)
        loop.after_step = lambda index: None
        assert torch.equal(loop(), clean)


def conditioning_is_no_motion(name: str) -> None:
    """What is measured and kept are the channels that are denoised."""
    toy, loop = TOYS[name], model(name)
    with (
        cached(loop, "easycache", **POLICIES["easycache"]) as installation,
        installation.session(installation.policy) as session,
    ):
        loop()
        kept = [state.latest.residual for state in session.states.values() if state.latest]
    channels = toy.channels or _channels(toy)
    assert kept
    for residual in kept:
        assert residual.numel() * _channels(toy) == channels * torch.Size(toy.latent).numel()


def _channels(toy: Toy) -> int:
    adapter = adapter_for(toy.build())
    assert adapter is not None
    return toy.latent[adapter.latent.index("c")]


def bf16_runs(name: str) -> None:
    """In bfloat16: `never` changes nothing, each site skips."""
    dtype = torch.bfloat16
    loop = model(name, dtype)
    try:
        plain(name, dtype)
    except RuntimeError as error:
        raise NotImplementedError("without the cache it doesn't run in bfloat16 either") from error
    with cached(loop):
        assert torch.equal(loop(), plain(name, dtype))
    for site in SITES:
        with cached(loop, "taylorseer", site=site, interval=3) as installation:
            made = loop()
            assert made.dtype == dtype
            assert made.isfinite().all()
            assert installation.last is not None
            assert installation.last.stats.hits > 0


def loras_raise_the_epoch(name: str) -> None:
    """A LoRA comes and goes while the cache is on: the epoch rises each time, what was kept is lost, and the output is
    that of the model as it is then."""
    from peft import LoraConfig

    loop = model(name)
    if not hasattr(loop.transformer, "add_adapter"):
        raise NotImplementedError("its class takes no LoRAs")
    config = LoraConfig(r=2, init_lora_weights=False, target_modules=["to_q", "to_query"])
    with cached(loop, "interval", every=2) as installation:
        before = loop()
        torch.manual_seed(1)
        loop.transformer.add_adapter(config)
        changed = loop()
        assert installation.epoch == 1
        assert not torch.equal(changed, before)
        assert torch.equal(loop(), changed)
        loop.transformer.unload_lora()
        assert torch.equal(loop(), before)
        assert installation.epoch == 2


CHECKS: dict[str, Callable[[str], None]] = {
    "off": off_and_never_change_nothing,
    "exact reuse": reuse_is_exact,
    "branches": branches_are_apart,
    "bare": text_tells_the_branch,
    "exception": an_exception_leaves_no_trace,
    "conditioning": conditioning_is_no_motion,
    "bf16": bf16_runs,
    "LoRA": loras_raise_the_epoch,
}
"""Beside these each site and each policy is one."""


def checks() -> dict[str, Callable[[str], None]]:
    """All checks, by their column in the table."""
    sites = {f"site {s}": functools.partial(site_skips, site=s) for s in SITES}
    policies = {p: functools.partial(policy_runs, policy=p) for p in POLICIES}
    return {**sites, **policies, **CHECKS}
