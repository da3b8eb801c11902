"""What the control word does at a step's end."""

from __future__ import annotations

from pathlib import Path

import pytest
from diffusers import DiffusionPipeline

from warpcache_ray.engine.engine import Engine
from warpcache_ray.engine.events import Control, Generation, StepEvent
from warpcache_ray.engine.install import Installation
from warpcache_ray.engine.ranks import OneRank
from warpcache_ray.engine.session import SessionStore
from warpcache_ray.errors import InvalidRequest
from warpcache_ray.policy_spec import parse_policy

REUSE = parse_policy("interval", every=20)


def _request() -> Generation:
    return Generation("a cat", 0, height=32, width=32, num_frames=9, num_inference_steps=8)


@pytest.mark.parametrize("control", [Control(), Control(7), Control(cancel=True)])
def test_a_control_word_survives_its_way(control: Control) -> None:
    """As a number between ranks it means what it meant."""
    assert Control.read(control.word) == control


def test_a_raised_epoch_makes_the_next_step_compute(folders: dict[str, Path]) -> None:
    """What was kept belongs to the old epoch: dropped at that boundary, once; the result names the new one."""
    engine = Engine.load(folders["wan"])
    held: list[int] = []

    def on_step(event: StepEvent) -> Control:
        held.append(engine.store.nbytes)
        return Control(epoch=5 if event.index >= 2 else 4)

    result = engine.generate(_request(), REUSE, on_step, epoch=4)
    computed = {r.step for r in result.stats.records if not r.decision.skips}
    assert computed == {0, 3, 7}
    assert result.epoch == 5
    assert engine.store.stats.invalidations == 1


def test_an_older_epoch_changes_nothing(folders: dict[str, Path]) -> None:
    """A word that was overtaken on its way is no reason to drop what is valid."""
    engine = Engine.load(folders["wan"])
    result = engine.generate(_request(), REUSE, lambda event: Control(3), epoch=4)
    assert result.epoch == 4
    assert engine.store.stats.invalidations == 0


def test_without_a_listener_the_epoch_stays(folders: dict[str, Path]) -> None:
    """Nobody to say otherwise."""
    engine = Engine.load(folders["wan"])
    assert engine.generate(_request(), REUSE, epoch=9).epoch == 9


class _Two(OneRank):
    size = 2


def test_ranks_that_share_a_run_have_no_clock(folders: dict[str, Path]) -> None:
    """A time to live would part them."""
    pipe = DiffusionPipeline.from_pretrained(folders["wan"])
    with pytest.raises(InvalidRequest, match="ttl = 5"):
        Installation(pipe, REUSE, _Two(), SessionStore(ttl=5.0))
