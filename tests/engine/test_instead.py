from __future__ import annotations

import pytest

from warpcache_ray.engine.instead import instead


class Thing:
    """Something with a method."""

    def speak(self) -> str:
        return "class"


def test_the_class_shows_through_again() -> None:
    """A method of the class is hidden for the block alone, however that ends."""
    thing, said = Thing(), []

    def other() -> str:
        said.append("other")
        raise KeyError

    with pytest.raises(KeyError), instead(thing, "speak", other):
        thing.speak()
    assert said == ["other"]
    assert thing.speak() == "class"
    assert vars(thing) == {}


def test_the_objects_own_comes_back() -> None:
    """A method that somebody had put on the object stands there afterwards."""
    thing = Thing()
    thing.speak = lambda: "own"  # type: ignore[method-assign]
    with instead(thing, "speak", lambda: "other"):
        assert thing.speak() == "other"
    assert thing.speak() == "own"
