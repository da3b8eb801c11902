"""What goes through a block, read and written back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from warpcache_ray.core.types import Grid
from warpcache_ray.engine.streams import Form, Stream
from warpcache_ray.models.adapter import BlockList

VIDEO, TEXT, BOTH = (
    torch.randn(1, 6, 2),
    torch.randn(1, 3, 2),
    ("encoder_hidden_states", "hidden_states"),
)


class Block(nn.Module):
    """The signature of most blocks."""

    def forward(self, hidden_states: Tensor, encoder_hidden_states: Tensor, temb: Any) -> None:
        """Nothing."""


@pytest.mark.parametrize(
    ("returns", "prefixed"),
    [
        (("hidden_states",), False),
        (("hidden_states",), True),
        (BOTH, False),
        (BOTH, True),
        (BOTH[::-1], True),
    ],
)
def test_what_is_read_is_written_back(returns: tuple[str, ...], prefixed: bool) -> None:
    """Tensors or tuples in either order, text apart or in front; given by position or by name."""
    form = Form(BlockList("blocks", returns, prefixed=prefixed), Block(), Grid(1, 2, 2))
    given = form.given((VIDEO,), {"encoder_hidden_states": TEXT, "temb": None})
    stream = form.read(given)
    assert stream.video.shape[1] == (4 if prefixed else 6)
    written = form.write(stream)
    assert type(written) is type(given)
    for one, other in zip(written, given, strict=True):
        assert torch.equal(one, other)


def test_text_that_the_last_block_drops_stays_dropped() -> None:
    """Its change is unknown, and where it was it stays."""
    start, end = Stream(VIDEO, (TEXT,)), Stream(VIDEO + 1, (None,))
    assert end.since(start) == (None,)
    moved = start.moved(end.video - start.video, end.since(start))
    torch.testing.assert_close(moved.video, end.video)
    assert moved.beside[0] is TEXT


def test_changes_of_another_prompt_do_not_fit() -> None:
    """As many tokens, or no text at all."""
    stream = Stream(VIDEO, (TEXT,))
    assert stream.fits((TEXT + 1,))
    assert stream.fits((None,))
    assert not stream.fits((TEXT[:, 1:],))
