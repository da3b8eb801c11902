"""What the engine does at each site, on the tiny models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from diffusers.configuration_utils import FrozenDict
from torch import Tensor

from warpcache_ray import dit_cache_stats, enable_dit_cache
from warpcache_ray.core.types import Site, Where
from warpcache_ray.engine.install import Installation, find
from warpcache_ray.engine.output import noisy_part
from warpcache_ray.policy_spec import parse_policy

Run = Callable[..., Tensor]

SITES = {
    Site.OUTPUT: {"name": "taylorseer", "site": "output", "order": 2, "interval": 3},
    Site.BLOCKS: {"name": "taylorseer", "site": "blocks", "order": 2, "interval": 3},
    Site.LAYER: {"name": "taylorseer", "site": "layer", "order": 2, "interval": 3},
}
TRAILS = {
    "teacache": {"name": "teacache", "threshold": 10.0, "warmup": 2},
    "dicache": {"name": "dicache", "threshold": 10.0, "retention": 0.3},
    "easycache": {"name": "easycache", "threshold": 10.0, "warmup": 2},
}
AUTO = {"name": "auto", "max_calls": 3}


@pytest.fixture
def wan(folders: dict[str, Path]) -> Any:
    """A fresh pipeline that calls two branches per step."""
    pipe = DiffusionPipeline.from_pretrained(folders["wan"])
    pipe.set_progress_bar_config(disable=True)
    return pipe


each_site = pytest.mark.parametrize("site", SITES)


def _installed(pipe: Any, spec: Any) -> Installation:
    enable_dit_cache(pipe, spec)
    installation = find(pipe)
    assert installation is not None
    return installation


def _blocks(pipe: Any) -> list[Any]:
    endings = ("TransformerBlock", "SingleTransformerBlock")
    return [m for m in pipe.transformer.modules() if type(m).__name__.endswith(endings)]


def _outputs(pipe: Any) -> list[Tensor]:
    """Fills with what each denoiser call gives."""
    given: list[Tensor] = []
    inner = pipe.transformer.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        out = inner(*args, **kwargs)
        given.append(out[0])
        return out

    pipe.transformer.forward = forward
    return given


@each_site
def test_three_recomputes_are_kept(pipe: Any, latents: Run, site: Site) -> None:
    """As many snapshots as the policy asks for, newest first, and no more."""
    installation = _installed(pipe, SITES[site])
    with installation.session(installation.policy) as session:
        latents(pipe)
        indices = {
            tuple(s.step.index for s in state.snapshots) for state in session.states.values()
        }
    # Of eight steps 0, 1, 2, 5 and the last are computed.
    assert indices == {(7, 5, 2)}
    layers = {record.layer for record in session.stats.records}
    assert layers == (set(range(len(_blocks(pipe)))) if site is Site.LAYER else {None})


@each_site
def test_a_call_that_raises_changes_no_state(pipe: Any, latents: Run, site: Site) -> None:
    """A block that fails in the middle of a recompute leaves the states as they were; the session's end drops them."""
    installation = _installed(pipe, SITES[site])
    before: list[dict[Where, int]] = []
    with installation.session(installation.policy) as session:

        def fail(*_: Any) -> None:
            before.append({where: id(state) for where, state in session.states.items()})
            # Steps 0, 1 and 2 are computed, the next one that is, is step 5.
            if session.stats.records[-1:] and session.stats.records[-1].step >= 4:
                raise RuntimeError("in a block")

        _blocks(pipe)[-1].register_forward_pre_hook(fail)
        with pytest.raises(RuntimeError, match="in a block"):
            latents(pipe)
        assert {where: id(state) for where, state in session.states.items()} == before[-1] != {}
        assert max(r.step for r in session.stats.records) == 4
    assert session.states == {}
    assert session.nbytes == installation.store.nbytes == 0


@pytest.mark.parametrize("spec", [*SITES.values(), *TRAILS.values(), AUTO], ids=str)
def test_a_run_after_a_failure_is_as_any(pipe: Any, latents: Run, spec: dict[str, Any]) -> None:
    """Half a run leaves nothing for the next session."""
    installation = _installed(pipe, spec)
    clean = latents(pipe)

    def explode(*_: Any) -> dict[str, Any]:
        raise RuntimeError("after a step")

    with (
        pytest.raises(RuntimeError, match="after a step"),
        installation.session(installation.policy),
    ):
        latents(pipe, seed=3, callback_on_step_end=explode)
    assert torch.equal(latents(pipe), clean)


@each_site
def test_branches_keep_apart(wan: Any, latents: Run, site: Site) -> None:
    """Each branch reuses its own: cond and uncond forecast from residuals that differ."""
    installation = _installed(wan, SITES[site])
    with installation.session(installation.policy) as session:
        latents(wan)
        states = dict(session.states)
    for where, state in states.items():
        other = states[where._replace(branch="uncond" if where.branch == "cond" else "cond")]
        assert state.latest is not None
        assert other.latest is not None
        assert not torch.equal(state.latest.residual, other.latest.residual)


@pytest.mark.parametrize("name", TRAILS)
def test_trails_follow_each_step(pipe: Any, latents: Run, name: str) -> None:
    """Drift gathers from skip to skip, and is nothing after a recompute; what the trail holds is counted."""
    installation = _installed(pipe, TRAILS[name])
    latents(pipe)
    stats = dit_cache_stats(pipe)
    rows = [r.decision for r in stats.records if r.branch == stats.records[0].branch]
    drifts = [d.drift for d in rows if d.drift is not None]
    assert len(drifts) >= 4
    assert drifts == sorted(drifts)
    assert drifts[0] > 0
    assert stats.peak_cache_bytes > 0
    assert installation.store.nbytes == 0


@pytest.mark.parametrize(
    ("channels", "shape", "noisy"),
    [
        (12, (1, 12, 3, 2, 2), (1, 4, 3, 2, 2)),
        (5, (1, 4, 3, 2, 2), (1, 4, 3, 2, 2)),
        (4, (1, 6, 4, 2, 2), (1, 6, 4, 2, 2)),
    ],
    ids=["an image beside it", "a mask apart", "frames first"],
)
def test_what_is_denoised_is_as_large_as_the_output(
    channels: int, shape: tuple[int, ...], noisy: tuple[int, ...]
) -> None:
    """Of the latents only what was concatenated to them is left out: not frames, where those stand first."""
    config = FrozenDict(in_channels=channels, out_channels=4)
    assert noisy_part(config, torch.zeros(shape)).shape == noisy


def test_the_second_branch_follows(wan: Any, latents: Run) -> None:
    """EasyCache decides on the first branch of a step for both."""
    _installed(wan, {"name": "easycache", "threshold": 0.3, "warmup": 2})
    latents(wan)
    records = dit_cache_stats(wan).records
    actions = {b: [r.decision.action for r in records if r.branch == b] for b in ("cond", "uncond")}
    assert actions["cond"] == actions["uncond"]
    assert {r.decision.reason for r in records if r.branch == "uncond"} >= {"warmup", "peer"}


def test_guidance_adds_the_last_gap(wan: Any, latents: Run) -> None:
    """What the pipeline is given for uncond is cond and their gap at the last recompute."""
    spec = {"name": "guidance", "every": 4, "alpha1": 0.0, "alpha2": 0.0, "retention": 0.0}
    _installed(wan, spec)
    given = _outputs(wan)
    latents(wan)
    cond, uncond = given[0::2], given[1::2]
    records = [r for r in dit_cache_stats(wan).records if r.branch == "uncond"]
    # The last step is the cooldown.
    assert [r.step for r in records if not r.decision.skips] == [0, 4, 7]
    for index, base in ((2, 0), (3, 0), (5, 4)):
        torch.testing.assert_close(uncond[index], cond[index] + uncond[base] - cond[base])
    assert not any(r.decision.skips for r in dit_cache_stats(wan).records if r.branch == "cond")


@each_site
def test_an_invalidated_request_recomputes(pipe: Any, latents: Run, site: Site) -> None:
    """States that are taken away in the middle of a run are computed again, and the run goes on."""
    installation = _installed(pipe, SITES[site])
    with installation.session(installation.policy) as session:
        session.request = "a"

        def invalidate(pipe: Any, index: int, *_: Any) -> dict[str, Any]:
            if index == 3:
                assert installation.store.invalidate("a") == 1
            return {}

        latents(pipe, callback_on_step_end=invalidate)
    reasons = {r.step: r.decision.reason for r in session.stats.records}
    assert reasons[3] == "interval"
    assert reasons[4] == "no state"


def test_policies_of_all_sites_serve_one_model(pipe: Any, latents: Run) -> None:
    """Sessions of different sites one after another: each as if it were alone."""
    installation = _installed(pipe, "never")
    results = []
    for _ in range(2):
        for spec in SITES.values():
            with installation.session(parse_policy(spec)):
                results.append(latents(pipe))
    half = len(SITES)
    for first, again in zip(results[:half], results[half:], strict=True):
        assert torch.equal(first, again)
