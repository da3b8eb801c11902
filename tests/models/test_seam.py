"""The contract with diffusers' private hooks: what the pinned range must keep doing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from torch import Tensor, nn

from warpcache_ray.models import ADAPTERS, adapter_for
from warpcache_ray.models.seam import Announcement, attach, detach, observer_of


class Listener:
    """Notes what a transformer's observer hears."""

    def __init__(self) -> None:
        self.calls: list[Announcement] = []
        self.endings = 0

    def called(
        self,
        module: nn.Module,
        said: Announcement,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        proceed: Callable[[], Any],
    ) -> Any:
        assert {"hidden_states", "timestep"} <= set(kwargs)
        self.calls.append(said)
        return proceed()

    def ended(self) -> None:
        self.endings += 1


@pytest.fixture
def listener(pipe: Any) -> Listener:
    heard = Listener()
    attach(pipe.transformer, heard)
    return heard


def test_pipelines_announce_their_branches(
    pipe: Any, listener: Listener, latents: Callable[..., Tensor], model: str
) -> None:
    """Wan names branch, step and sigma; HunyuanVideo (guidance-distilled) its only branch; Cosmos nothing."""
    latents(pipe)
    branches = {"wan": ["cond", "uncond"] * 8, "hunyuan": ["cond"] * 8, "cosmos": [None] * 16}
    assert [c.branch for c in listener.calls] == branches[model]
    told = model == "wan"
    assert all((c.step_index is not None) is told for c in listener.calls)
    assert all((c.total == 8) is told for c in listener.calls)
    assert all((c.sigma is not None) is told for c in listener.calls)


def test_a_run_tells_its_end(pipe: Any, listener: Listener, latents: Callable[..., Tensor]) -> None:
    """The pipeline resets its stateful hooks when it is done."""
    latents(pipe)
    assert listener.endings > 0


def test_detach(pipe: Any, listener: Listener, latents: Callable[..., Tensor]) -> None:
    """A detached observer hears nothing, and is no longer found."""
    assert observer_of(pipe.transformer) is listener
    detach(pipe.transformer)
    assert observer_of(pipe.transformer) is None
    latents(pipe)
    assert listener.calls == []


def test_adapters_fit_their_models(
    pipe: Any, listener: Listener, latents: Callable[..., Tensor]
) -> None:
    """The block lists exist, and the grid has as many tokens as the blocks are given."""
    adapter = adapter_for(pipe.transformer)
    assert adapter is not None
    assert type(pipe.transformer).__name__ == adapter.transformer
    tokens: list[int] = []
    first = getattr(pipe.transformer, adapter.block_lists[0])[0]
    first.register_forward_pre_hook(lambda module, args: tokens.append(args[0].shape[1]))
    final = latents(pipe)
    assert {adapter.grid(pipe.transformer.config, final).tokens} == set(tokens)


def test_a_subclass_has_its_parents_adapter(pipe: Any) -> None:
    """A wrapper class derived from a known transformer is known too."""
    kind = type(pipe.transformer)
    wrapped = type("Wrapped", (kind,), {})
    assert adapter_for(wrapped.__new__(wrapped)) is ADAPTERS[kind.__name__]


def test_unknown_transformer() -> None:
    """A class without an adapter has none."""
    assert adapter_for(nn.Linear(1, 1)) is None
