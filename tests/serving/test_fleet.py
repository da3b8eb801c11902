from __future__ import annotations

import time

import pytest

from warpcache_ray.serving.fleet import Fleet


def test_who_is_silent_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """A replica is live for so long after its last word, with what it said then."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    fleet = Fleet()
    fleet.hear("a", {"blocks": 1})
    now[0] = 104.0
    fleet.hear("b", {"blocks": 2})
    fleet.hear("b", {"blocks": 3})
    assert fleet.live(5.0) == {"a": {"blocks": 1}, "b": {"blocks": 3}}
    now[0] = 106.0
    assert fleet.live(5.0) == {"b": {"blocks": 3}}
    now[0] = 110.0
    assert fleet.live(5.0) == {}
