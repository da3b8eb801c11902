"""Branches told by texts."""

from __future__ import annotations

import torch

from warpcache_ray.engine.branches import Branches

ONE, TWO = torch.zeros(1, 2, 3), torch.ones(1, 2, 3)


def test_texts_tell_branches_in_any_order() -> None:
    """Named in the order of the first calls; a step that leaves one out, or turns them round, confuses nothing."""
    branches = Branches()
    called = [(0, ONE), (0, TWO), (1, TWO), (2, TWO), (2, ONE), (3, ONE.clone())]
    told = [branches.of(index, text, guided=True) for index, text in called]
    assert told == ["cond", "uncond", "uncond", "uncond", "cond", "cond"]


def test_equal_texts_are_told_by_their_order() -> None:
    """An empty prompt on both sides; of a step with one call it is the same branch however often it is made."""
    branches = Branches()
    assert [branches.of(i // 2, ONE, guided=True) for i in range(4)] == ["cond", "uncond"] * 2
    branches = Branches()
    assert [branches.of(0, ONE, guided=False) for _ in range(3)] == ["cond"] * 3


def test_a_third_call_of_a_step_is_a_branch_too() -> None:
    """Texts with images are tuples; no text is one as well."""
    branches = Branches()
    texts = [(ONE, TWO), (ONE, ONE), None]
    for _ in range(2):
        told = [branches.of(0, text, guided=False) for text in texts]
        assert told == ["cond", "uncond", "call_2"]
