"""One attribute of one object, replaced for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def instead(target: Any, name: str, value: Any) -> Iterator[None]:
    """Within, `target.name` is `value`; afterwards it is what it was, the object's own or its class's."""
    own = vars(target)
    before = {name: own[name]} if name in own else {}
    setattr(target, name, value)
    try:
        yield
    finally:
        delattr(target, name)
        own.update(before)
