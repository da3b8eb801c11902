"""The one place that touches diffusers' private hook interface (pinned by a version range and a contract test)."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from diffusers.hooks import HookRegistry, ModelHook
from diffusers.hooks.hooks import BaseState, StateManager
from torch import nn

_HOOK = "warpcache"
_END = "_reset_stateful_cache"


@dataclass(frozen=True, slots=True)
class Announcement:
    """What a pipeline says of a denoiser call through `cache_context`; None where it says nothing."""

    branch: str | None = None
    step_index: int | None = None
    total: int | None = None
    sigma: float | None = None


class Observer(Protocol):
    """Whom to ask at a transformer's calls."""

    def called(
        self,
        transformer: nn.Module,
        said: Announcement,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        proceed: Callable[[], Any],
    ) -> Any:
        """In place of each forward; `proceed` runs it."""
        ...

    def ended(self) -> None:
        """When a pipeline's run is over."""
        ...


class _CallHook(ModelHook):  # type: ignore[misc]
    _is_stateful = True

    def __init__(self, observer: Observer) -> None:
        super().__init__()
        self.observer = observer
        # diffusers finds this attribute by its type and sets the context of each `cache_context` in it.
        self.contexts = StateManager(BaseState)

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        def proceed() -> Any:
            return self.fn_ref.original_forward(*args, **kwargs)

        return self.observer.called(module, self._announcement(), args, kwargs, proceed)

    def reset_state(self, module: nn.Module) -> nn.Module:
        self.contexts.reset()
        self.observer.ended()
        return module

    def _announcement(self) -> Announcement:
        context = self.contexts._context
        if context is None:
            return Announcement()
        # diffusers' guiders name what they make of a branch.
        branch = context.name and context.name.removeprefix("pred_")
        return Announcement(branch, context.step_index, context.num_inference_steps, context.sigma)


def arguments_of(
    transformer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Any]:
    """A denoiser call's arguments by their names."""
    return dict(zip(parameters_of(type(transformer).forward), args, strict=False)) | kwargs


@functools.cache
def parameters_of(method: Callable[..., Any]) -> tuple[str, ...]:
    """The names of a method's parameters, without `self`."""
    return tuple(inspect.signature(method).parameters)[1:]


def attach(transformer: nn.Module, observer: Observer) -> None:
    """Starts observing; one observer per transformer."""
    registry = HookRegistry.check_if_exists_or_initialize(transformer)
    registry.register_hook(_CallHook(observer), _HOOK)
    registry.invalidate_child_registries_cache()
    # By this pipelines tell the end of a run; not all transformers have it (Cosmos' hasn't).
    if not hasattr(transformer, _END):
        vars(transformer)[_END] = registry.reset_stateful_hooks


def detach(transformer: nn.Module) -> None:
    """Stops observing."""
    registry = HookRegistry.check_if_exists_or_initialize(transformer)
    registry.remove_hook(_HOOK, recurse=False)
    registry.invalidate_child_registries_cache()
    vars(transformer).pop(_END, None)


def observer_of(transformer: nn.Module) -> Observer | None:
    """Who observes this transformer."""
    registry = getattr(transformer, "_diffusers_hook", None)
    hook = registry.get_hook(_HOOK) if registry is not None else None
    observer: Observer | None = hook.observer if hook is not None else None
    return observer
