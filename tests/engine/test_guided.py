"""Cond and uncond side by side: two halves as threads, each with a pipeline of its own."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from queue import Queue
from typing import Any, Literal

import pytest
import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from warpcache_ray import dit_cache_stats, enable_dit_cache
from warpcache_ray.engine.install import Installation
from warpcache_ray.engine.ranks import OneRank
from warpcache_ray.policy_spec import parse_policy

Run = Callable[..., Tensor]

SPECS: list[dict[str, Any]] = [
    {"name": "never"},
    {"name": "first_block", "threshold": 0.12},
    {"name": "taylorseer", "interval": 3, "site": "layer"},
    {"name": "easycache", "threshold": 0.4, "warmup": 2},
    {"name": "auto", "max_calls": 3},
]


@dataclass
class Half:
    """One of two threads; they pass each other what they have."""

    branch: Literal["cond", "uncond"]
    mine: Queue[Any] = field(default_factory=Queue)
    other: Half | None = None

    def tell(self, notes: Any) -> tuple[Any, Any]:
        """Both halves' notes."""
        assert self.other is not None
        self.mine.put(notes)
        theirs = self.other.mine.get(timeout=20)
        return (notes, theirs) if self.branch == "cond" else (theirs, notes)

    def exchange(self, output: Tensor) -> tuple[Tensor, Tensor]:
        """Both halves' outputs."""
        return self.tell(output.clone())


class Sharing(OneRank):
    """The one rank of a half."""

    def __init__(self, half: Half) -> None:
        self.halves = half


@pytest.fixture
def wan(folders: dict[str, Path]) -> Callable[[], Any]:
    """Fresh pipelines."""

    def load() -> Any:
        pipe = DiffusionPipeline.from_pretrained(folders["wan"])
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return load


@pytest.fixture
def both(wan: Callable[[], Any]) -> list[Installation]:
    """The installations of the two halves."""
    cond, uncond = Half("cond"), Half("uncond")
    cond.other, uncond.other = uncond, cond
    return [Installation(wan(), parse_policy("never"), Sharing(half)) for half in (cond, uncond)]


def _side_by_side(both: list[Installation], made: Callable[[Installation], Any]) -> list[Any]:
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(made, both))


def _pipe(installation: Installation) -> Any:
    return installation._clock.pipeline


def _forwards(installation: Installation) -> list[int]:
    """Counts the runs of the last block, which no policy here probes."""
    runs = [0]

    def count(*_: Any) -> None:
        runs[0] += 1

    last = _pipe(installation).transformer.blocks[-1]
    last.register_forward_pre_hook(count)
    return runs


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec["name"])
def test_halves_make_what_one_makes_in_half_the_calls(
    wan: Callable[[], Any], both: list[Installation], latents: Run, spec: dict[str, Any]
) -> None:
    """The same latents and account to the bit, and no half computes more calls than one branch's recomputes."""
    alone = wan()
    enable_dit_cache(alone, spec)
    expected, account = latents(alone), dit_cache_stats(alone).records
    forwards = [_forwards(installation) for installation in both]

    def made(installation: Installation) -> tuple[Tensor, Any]:
        with installation.session(parse_policy(spec)) as session:
            return latents(_pipe(installation)), session.stats.records

    for final, records in _side_by_side(both, made):
        assert torch.equal(final, expected)
        assert records == account
    last = max((r.layer for r in account if r.layer is not None), default=None)
    recomputed = [r for r in account if not r.decision.skips and r.layer == last]
    for branch, (runs,) in zip(("cond", "uncond"), forwards, strict=True):
        assert runs == sum(r.branch == branch for r in recomputed)


def test_a_run_after_a_failure_is_as_any(both: list[Installation], latents: Run) -> None:
    """Nothing of a run that stopped between cond and uncond is left for the next."""

    def failing(installation: Installation) -> None:
        pipe = _pipe(installation)
        ask = installation._asked

        def fail(*args: Any) -> Any:
            if args[1].branch == "uncond":
                raise RuntimeError("before uncond")
            return ask(*args)

        installation._asked = fail  # type: ignore[method-assign]
        with pytest.raises(RuntimeError, match="before uncond"):
            latents(pipe)
        installation._asked = ask  # type: ignore[method-assign]

    clean = _side_by_side(both, lambda installation: latents(_pipe(installation)))
    _side_by_side(both, failing)
    again = _side_by_side(both, lambda installation: latents(_pipe(installation)))
    for one, two in zip(clean, again, strict=True):
        assert torch.equal(one, two)
