"""Puts the cache into a loaded model and takes it out again: `enable_dit_cache`, `disable_dit_cache`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from warpcache_ray.core.policy import Policy
from warpcache_ray.core.types import Site, Where
from warpcache_ray.engine.blocks import BlockStack
from warpcache_ray.engine.call import Call
from warpcache_ray.engine.clock import StepClock
from warpcache_ray.engine.fingerprints import fingerprint, identity
from warpcache_ray.engine.guided import Asked, SideBySide
from warpcache_ray.engine.output import OutputForm, denoise, latent_grid
from warpcache_ray.engine.ranks import OneRank, Ranks
from warpcache_ray.engine.session import Session, SessionStore
from warpcache_ray.engine.stats import CacheStats
from warpcache_ray.errors import InvalidPolicy, InvalidRequest
from warpcache_ray.models import ADAPTERS, adapter_for
from warpcache_ray.models.loras import loras
from warpcache_ray.models.seam import (
    Announcement,
    arguments_of,
    attach,
    detach,
    observer_of,
)
from warpcache_ray.policy_spec import PolicySpec, parse_policy

_TRANSFORMERS = ("transformer", "transformer_2")


class Installation:
    """The cache in one pipeline (or bare transformer): which session each denoiser call belongs to.

    A session opened with `session()` takes all calls made within it; outside, each run of the pipeline is a
    session of its own under the installed policy.
    """

    def __init__(
        self,
        target: Any,
        policy: Policy,
        ranks: Ranks | None = None,
        store: SessionStore | None = None,
    ) -> None:
        self.policy = policy
        self.store = store or SessionStore()
        self.transformers = _transformers(target)
        self.last: Session | None = None
        self.epoch = 0
        """How often the transformers' LoRAs have changed."""
        self._loras: dict[str, tuple[Any, ...]] = {}
        self._heard: dict[str, int] = {}
        """The run in which each transformer was looked at."""
        self._identity: str | None = None
        self._clock = StepClock(target if hasattr(target, "scheduler") else None)
        self._run = 0
        self._opened: ContextVar[Session | None] = ContextVar("warpcache_session", default=None)
        self._names = {id(t): name for name, t in self.transformers.items()}
        adapters = {name: adapter_for(t) for name, t in self.transformers.items()}
        ranks = ranks or OneRank()
        self._stacks = {
            name: BlockStack(self.transformers[name], adapter, ranks, self.store)
            for name, adapter in adapters.items()
            if adapter is not None
        }
        self.check(policy)
        if self.store.ttl is not None and (ranks.size > 1 or ranks.halves):
            raise InvalidRequest(
                f"ttl = {self.store.ttl}: ranks that share a run don't share a clock, and would lose their states at "
                "different steps; it must be None",
                "ttl",
            )
        self._side_by_side = SideBySide(ranks.halves, self._answer) if ranks.halves else None
        for name, transformer in self.transformers.items():
            attach(transformer, self)
            if name in self._stacks:
                self._stacks[name].install()

    def remove(self) -> None:
        """Puts the model back as it was."""
        for name, transformer in self.transformers.items():
            detach(transformer)
            if name in self._stacks:
                self._stacks[name].remove()

    @property
    def block_count(self) -> int:
        """Blocks of the first transformer; 0 if it has no adapter."""
        return self._blocks(next(iter(self.transformers)))

    def _blocks(self, name: str) -> int:
        return len(self._stacks[name]) if name in self._stacks else 0

    def check(self, policy: Policy) -> None:
        """Refuses a policy that this model can't follow.

        Raises:
            InvalidPolicy: the model has no adapter, or the policy leaves none of its blocks to skip.
        """
        if policy.site is Site.OUTPUT:
            self._check_model(policy)
            return
        missing = [n for n in self.transformers if n not in self._stacks]
        if missing and policy.window:
            kind = type(self.transformers[missing[0]]).__name__
            known = ", ".join(ADAPTERS)
            raise InvalidPolicy(
                f"policy {policy.name!r}: {kind} has no adapter, so only 'never' and policies of site 'output' can "
                f"serve it; there are adapters for: {known}",
                "policy",
            )
        try:
            _, _, end = policy.block_range(self.block_count)
        except ValueError as error:
            raise InvalidPolicy(f"policy {policy.name!r}: {error}", "policy.blocks") from error
        adapters = [stack.adapter for stack in self._stacks.values()]
        bound = next((a.transformer for a in adapters if a.to_the_end), None)
        if policy.site is Site.BLOCKS and bound and end < self.block_count:
            raise InvalidPolicy(
                f"policy {policy.name!r}: blocks = {policy.blocks}: late blocks of {bound} read what early ones gave; "
                "its end must be None",
                "policy.blocks",
            )

    def _check_model(self, policy: Policy) -> None:
        known, transformer = getattr(policy, "model", None), next(iter(self.transformers.values()))
        # By its configuration, or by its weights too.
        if known is None or known == fingerprint(transformer):
            return
        if self._identity is None:
            self._identity = identity(transformer)
        if known != self._identity:
            raise InvalidPolicy(
                f"policy {policy.name!r}: model: calibrated on {known}, this is {self._identity}",
                "policy.model",
            )

    @contextmanager
    def session(
        self, policy: Policy, request: str | None = None, start: int = 0
    ) -> Iterator[Session]:
        """A session for the calls made within; its states are dropped at the end, however it ends. By `request` the
        store can be told to forget them earlier. The calls of its first `start` steps, which an earlier run has made,
        are answered with zeros.

        Raises:
            InvalidPolicy: see `check`.
        """
        self.check(policy)
        session = Session(policy, request, start)
        token = self._opened.set(session)
        try:
            yield session
        finally:
            self._opened.reset(token)
            self.last = session
            self.store.drop(session)

    def called(
        self,
        transformer: nn.Module,
        said: Announcement,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        proceed: Callable[[], Any],
    ) -> Any:
        """Makes a denoiser call, or what the policy puts in its place."""
        arguments = arguments_of(transformer, args, kwargs)
        if not isinstance(arguments.get("hidden_states"), Tensor):
            # A list of latents, one for each sample: of these none is cached.
            return proceed()
        asked = self._asked(transformer, said, arguments, proceed)
        session = asked.call.session
        if asked.call.step.index < session.start:
            return asked.form.blank(transformer.config)
        if session.first_call is None:
            if asked.latent.is_cuda:
                torch.cuda.synchronize(asked.latent.device)
            session.first_call = time.perf_counter()
        if self._side_by_side is not None and self._clock.guided:
            out = self._side_by_side.called(asked)
        else:
            out = self._answer(asked, asked.compute)
        session.stats.measure(session.first_call, asked.latent.device)
        return out

    def _heed_loras(self, transformer: nn.Module) -> None:
        """With other LoRAs than in the last run it is another model: what was kept of the former holds no more."""
        name, now = self._names[id(transformer)], loras(transformer)
        if now == self._loras.get(name, ()):
            return
        self._loras[name] = now
        self._identity = None
        self.epoch += 1
        self.store.forget()

    def _asked(
        self,
        transformer: nn.Module,
        said: Announcement,
        arguments: dict[str, Any],
        proceed: Callable[[], Any],
    ) -> Asked:
        latent = arguments["hidden_states"]
        name = self._names[id(transformer)]
        second = name == _TRANSFORMERS[1]
        text = arguments.get("encoder_hidden_states")
        step = self._clock.tick(said, arguments.get("timestep"), second, text)
        if self._heard.get(name) != self._clock.runs:
            self._heard[name] = self._clock.runs
            self._heed_loras(transformer)
        session, where = self._session(), Where(name, step.branch)
        stack, config = self._stacks.get(name), transformer.config
        adapter = stack.adapter if stack is not None else None
        form = OutputForm.of(adapter, config, latent, arguments)
        if session.policy.site is Site.OUTPUT or stack is None:
            grid = latent_grid(form.noisy, adapter.latent if adapter else None)
            return Asked(Call(session, where, step, grid), form, proceed)
        grid = stack.adapter.grid(config, latent, arguments)
        call = Call(session, where, step, grid)
        return Asked(call, form, lambda: stack.compute(call, proceed))

    def _answer(self, asked: Asked, compute: Callable[[], Any]) -> Any:
        call = asked.call
        if call.policy.site is not Site.OUTPUT:
            return compute()
        blocks = self._blocks(call.where.transformer)
        return denoise(call, asked.form, blocks, self.store, compute)

    def _session(self) -> Session:
        opened = self._opened.get()
        if opened is not None:
            # Pipelines that make a video in chunks denoise each in a run of its own.
            if self._clock.pipeline is not None and opened.run not in (None, self._clock.runs):
                self.store.drop(opened)
                opened.start = 0
            opened.run = self._clock.runs
            return opened
        if self.last is None or self._run != self._clock.runs:
            self.ended()
            self._run = self._clock.runs
            self.last = Session(self.policy)
        return self.last

    def ended(self) -> None:
        """Hears of the end of a pipeline's run: nothing is kept for the next one."""
        if self.last is not None:
            self.store.drop(self.last)


def enable_dit_cache(target: Any, policy: PolicySpec = "worldcache", **parameters: Any) -> None:
    """Turns the cache on for a diffusers pipeline or transformer; from then on each run uses `policy`.

    Names of modules and weights stay as they are; LoRAs may come and go while it is on.

    Raises:
        InvalidPolicy: unknown policy or parameter, or no adapter for this transformer.
        InvalidRequest: the cache is on already, or `target` has no transformer.
    """
    if find(target) is not None:
        raise InvalidRequest("the cache is on already; call disable_dit_cache first", "policy")
    Installation(target, parse_policy(policy, **parameters))


def disable_dit_cache(target: Any) -> None:
    """Turns the cache off; the model is as it was before. Does nothing if it is off."""
    installation = find(target)
    if installation is not None:
        installation.remove()


def dit_cache_stats(target: Any) -> CacheStats:
    """What the cache did in the latest run (an empty account before the first).

    Raises:
        InvalidRequest: the cache is off.
    """
    installation = find(target)
    if installation is None:
        raise InvalidRequest("the cache is off; call enable_dit_cache first", "policy")
    if installation.last is None:
        return Session(installation.policy).stats
    return installation.last.stats


def find(target: Any) -> Installation | None:
    """The installation in a pipeline or transformer."""
    for transformer in _transformers(target).values():
        observer = observer_of(transformer)
        if observer is not None:
            assert isinstance(observer, Installation)
            return observer
    return None


def _transformers(target: Any) -> dict[str, nn.Module]:
    if isinstance(target, nn.Module):
        return {"transformer": target}
    found = {n: t for n in _TRANSFORMERS if (t := getattr(target, n, None)) is not None}
    if not found:
        raise InvalidRequest(
            f"{type(target).__name__} has no transformer; give a diffusers pipeline with one of "
            f"{', '.join(_TRANSFORMERS)}, or the transformer itself",
            "target",
        )
    return found
