from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from contract import POLICIES as EAGER
from diffusers.configuration_utils import FrozenDict
from torch import Tensor, nn

from warpcache_ray import disable_dit_cache, dit_cache_stats, enable_dit_cache
from warpcache_ray.core.policies import POLICIES
from warpcache_ray.core.types import Action, Site
from warpcache_ray.engine.install import find
from warpcache_ray.errors import InvalidPolicy, InvalidRequest

Run = Callable[..., Tensor]


def test_every_policy_is_tried_here() -> None:
    """The table above misses no policy."""
    assert set(EAGER) == set(POLICIES)


def test_never_is_bit_identical(pipe: Any, latents: Run) -> None:
    """The stand-in runs the blocks exactly as the transformer's own loop does."""
    plain = latents(pipe)
    enable_dit_cache(pipe, "never")
    assert torch.equal(latents(pipe), plain)
    assert dit_cache_stats(pipe).share_of_blocks == 1.0


@pytest.mark.parametrize("policy", EAGER)
def test_disable_restores_the_model(pipe: Any, latents: Run, policy: str) -> None:
    """After the cache is off, names of the weights and output are those of before."""
    names, plain = list(pipe.transformer.state_dict()), latents(pipe)
    enable_dit_cache(pipe, policy, **EAGER[policy])
    latents(pipe)
    disable_dit_cache(pipe)
    assert list(pipe.transformer.state_dict()) == names
    assert find(pipe) is None
    assert torch.equal(latents(pipe), plain)


@pytest.mark.parametrize("policy", [p for p in EAGER if p != "never"])
def test_a_skip_really_skips(pipe: Any, latents: Run, policy: str) -> None:
    """Blocks that the account calls skipped were not called, and those it calls run were."""
    calls: list[int] = []
    enable_dit_cache(pipe, policy, **EAGER[policy])
    installation = find(pipe)
    assert installation is not None
    for module in pipe.transformer.modules():
        if type(module).__name__.endswith(("TransformerBlock", "SingleTransformerBlock")):
            module.register_forward_hook(lambda *_: calls.append(1))
    latents(pipe)
    stats = dit_cache_stats(pipe)
    assert stats.blocks_run == len(calls)
    two_branches = len({record.branch for record in stats.records}) > 1
    assert (stats.hits > 0) == (two_branches or policy != "guidance")
    each = 1 if installation.policy.site is Site.LAYER else installation.block_count
    assert stats.blocks_run + stats.blocks_skipped == each * len(stats.records)


@pytest.mark.parametrize("policy", EAGER)
def test_runs_are_deterministic_and_apart(pipe: Any, latents: Run, policy: str) -> None:
    """Another prompt, shape, batch and dtype in between leave no trace in the next run."""
    enable_dit_cache(pipe, policy, **EAGER[policy])
    first = latents(pipe)
    latents(pipe, seed=1, prompt="a red field")
    latents(pipe, height=48)
    latents(pipe, prompt=["a cat", "a field"])
    with torch.autocast("cpu", torch.bfloat16):
        latents(pipe)
    assert torch.equal(latents(pipe), first)


@pytest.mark.parametrize("policy", EAGER)
def test_an_exception_leaves_no_trace(pipe: Any, latents: Run, policy: str) -> None:
    """A run that dies in the middle does not poison the next one."""
    enable_dit_cache(pipe, policy, **EAGER[policy])
    clean = latents(pipe)

    def explode(pipe: Any, index: int, timestep: Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
        if index == 4:
            raise RuntimeError("mid-run")
        return {}

    with pytest.raises(RuntimeError, match="mid-run"):
        latents(pipe, seed=5, prompt="a red field", callback_on_step_end=explode)
    assert torch.equal(latents(pipe), clean)


def test_memory_is_free_after_a_run(pipe: Any, latents: Run) -> None:
    """A finished pipeline holds no features, and the account remembers how many it held."""
    enable_dit_cache(pipe, "worldcache", **EAGER["worldcache"])
    latents(pipe)
    installation = find(pipe)
    assert installation is not None
    assert installation.store.nbytes == 0
    assert dit_cache_stats(pipe).peak_cache_bytes > 0


@pytest.mark.parametrize("blocks", [(0, None), (0, 3), (1, 3), (1, None)])
def test_a_skip_on_unchanged_input_is_the_recompute(pipe: Any, latents: Run, blocks: Any) -> None:
    """Reuse puts the stream, the text tokens of a joint model too, where the skipped blocks would have."""
    kept: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def keep(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        kept.append((args, {k: v for k, v in kwargs.items() if k != "return_dict"}))

    handle = pipe.transformer.register_forward_pre_hook(keep, with_kwargs=True)
    latents(pipe)
    handle.remove()
    args, kwargs = kept[3]
    enable_dit_cache(pipe.transformer, "interval", every=2, blocks=blocks, warmup=0)
    installation = find(pipe.transformer)
    assert installation is not None
    with torch.no_grad(), installation.session(installation.policy) as session:
        outputs = [pipe.transformer(*args, **kwargs, return_dict=False)[0] for _ in range(2)]
    assert [r.decision.skips for r in session.stats.records] == [False, True]
    torch.testing.assert_close(outputs[1], outputs[0], atol=1e-5, rtol=1e-5)


def test_steps_and_blocks_limit_any_policy(pipe: Any, latents: Run) -> None:
    """Outside `steps` all is recomputed; within, only `blocks` are skipped."""
    enable_dit_cache(pipe, "interval", every=2, steps=(3, 6), blocks=(1, 3))
    latents(pipe)
    for record in dit_cache_stats(pipe).records:
        inside = 3 <= record.step < 6
        assert record.decision.skips <= inside
        assert record.blocks_skipped == (2 if record.decision.skips else 0)
    assert dit_cache_stats(pipe).reused > 0


def test_account_tells_branches_apart(pipe: Any, latents: Run) -> None:
    """Each decision stands under its branch with drift, threshold and reason; ends are forced."""
    enable_dit_cache(pipe, "first_block", threshold=10.0)
    latents(pipe)
    branches = dit_cache_stats(pipe).to_dict()["branches"]
    assert set(branches) <= {"transformer.cond", "transformer.uncond"}
    for rows in branches.values():
        assert [row["step"] for row in rows] == list(range(8))
        assert rows[0]["reason"] == "warmup"
        assert rows[-1]["reason"] == "cooldown"
        assert rows[3]["drift"] >= 0
        assert rows[3]["threshold"] == 10.0


def test_two_experts_keep_apart(two_experts: Any, latents: Run) -> None:
    """Wan 2.2: the switch to the second transformer is a recompute, and each has states of its own."""
    plain = latents(two_experts)
    enable_dit_cache(two_experts, "never")
    assert torch.equal(latents(two_experts), plain)
    disable_dit_cache(two_experts)
    enable_dit_cache(two_experts, "interval", every=8)
    latents(two_experts)
    records = dit_cache_stats(two_experts).records
    second = [r for r in records if r.transformer == "transformer_2"]
    assert 0 < len(second) < len(records)
    assert not any(r.decision.skips for r in second if r.step == second[0].step)
    assert any(r.decision.skips for r in records if r.transformer == "transformer")


def test_bare_transformer() -> None:
    """A transformer without its pipeline counts steps by its timesteps; time that rises is a new run."""
    from diffusers import WanTransformer3DModel

    torch.manual_seed(0)
    transformer = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=8,
        freq_dim=16,
        ffn_dim=32,
        num_layers=2,
    )
    enable_dit_cache(transformer, "interval", every=2)
    latent, text = torch.randn(1, 4, 2, 4, 4), torch.randn(1, 3, 8)

    def run() -> list[Action]:
        for value in (900.0, 600.0, 300.0):
            with torch.no_grad():
                transformer(latent, torch.tensor([value]), text)
        return [r.decision.action for r in dit_cache_stats(transformer).records]

    expected = [Action.RECOMPUTE, Action.REUSE, Action.RECOMPUTE]
    assert run() == expected
    assert run() == expected


def test_a_range_without_a_block_to_skip_is_refused(pipe: Any) -> None:
    """A policy that could only pretend to skip is an error, not a row of empty hits."""
    for parameters in ({"probe_depth": 4}, {"blocks": (30, 40)}, {"blocks": (1, 2)}):
        with pytest.raises(InvalidPolicy, match="leave a block to skip"):
            enable_dit_cache(pipe, "first_block", **parameters)


def test_misuse_is_told(pipe: Any) -> None:
    """Twice on, off without on, unknown names: an error that says what to do, or what exists."""
    with pytest.raises(InvalidRequest, match="off"):
        dit_cache_stats(pipe)
    with pytest.raises(InvalidPolicy, match="worldcache"):
        enable_dit_cache(pipe, "worldcash")
    with pytest.raises(InvalidPolicy, match="threshold"):
        enable_dit_cache(pipe, "worldcache", treshold=1)
    enable_dit_cache(pipe)
    with pytest.raises(InvalidRequest, match="on already"):
        enable_dit_cache(pipe)
    with pytest.raises(InvalidRequest, match="no transformer"):
        enable_dit_cache(object())
    disable_dit_cache(pipe)
    disable_dit_cache(pipe)


class _Unknown(nn.Module):
    """A transformer nobody adapted; `listed` ones take a list of latents, as Z-Image does."""

    def __init__(self, listed: bool) -> None:
        super().__init__()
        self.config = FrozenDict()
        self.listed = listed
        self.calls = 0

    def forward(self, hidden_states: Any, timestep: Tensor, return_dict: bool = True) -> Any:
        self.calls += 1
        return (
            ([each * timestep for each in hidden_states],)
            if self.listed
            else (hidden_states * timestep,)
        )


@pytest.mark.parametrize("listed", [False, True])
def test_a_model_without_an_adapter(listed: bool) -> None:
    """Is cached at site `output`, where its latent is one tensor; left alone otherwise."""
    transformer = _Unknown(listed)
    enable_dit_cache(transformer, "taylorseer", site="output", interval=2, order=0, warmup=1)
    latent: Any = torch.ones(1, 4, 2, 2)
    for value in (900.0, 600.0, 300.0):
        timestep = torch.tensor([value])
        given = [latent] if listed else latent
        transformer(hidden_states=given, timestep=timestep, return_dict=False)
    assert transformer.calls == (3 if listed else 2)
