import time
from contextlib import ExitStack

import pytest

from warpcache_ray.access_config import RateLimits
from warpcache_ray.errors import RateLimited
from warpcache_ray.serving.ratelimit import RateLimiter, Streams

TWO_A_MINUTE = RateLimits(requests="2/minute")


@pytest.fixture
def clock(monkeypatch):
    """The time, which stands still until it is set."""
    now = [1_000_000.0]
    monkeypatch.setattr(time, "time", lambda: now[0])
    return now


def test_a_window_moves(clock):
    """Two a minute means: in any 60 s, so the third waits until the first is a minute old, the fourth for the second;
    what was refused isn't counted."""
    limiter, began = RateLimiter(), clock[0]
    for at in (0, 50):
        clock[0] = began + at
        limiter.take("requests", "a", TWO_A_MINUTE)
    for at, patience in ((50, 10), (59, 1)):
        clock[0] = began + at
        with pytest.raises(RateLimited, match=r"'a' may send 2 requests in 60 s") as caught:
            limiter.take("requests", "a", TWO_A_MINUTE)
        assert caught.value.retry_after_s == pytest.approx(patience)
    clock[0] = began + 61
    limiter.take("requests", "a", TWO_A_MINUTE)
    with pytest.raises(RateLimited) as caught:
        limiter.take("requests", "a", TWO_A_MINUTE)
    assert caught.value.retry_after_s == pytest.approx(49)


def test_clients_and_kinds_are_counted_apart(clock):
    """One client's requests leave another's, and its own submissions, as they are."""
    limiter, both = RateLimiter(), RateLimits("1/hour", "1/hour")
    limiter.take("requests", "a", both)
    limiter.take("submissions", "a", both)
    limiter.take("requests", "b", both)
    for kind, client in (("requests", "a"), ("submissions", "a"), ("requests", "b")):
        with pytest.raises(RateLimited):
            limiter.take(kind, client, both)
    limiter.take("submissions", "b", both)


def test_without_a_rate_there_is_no_limit():
    """And nothing to tell."""
    limiter = RateLimiter()
    for _ in range(1000):
        limiter.take("requests", "a", RateLimits())
    assert limiter.headers("a", RateLimits()) == {}


def test_what_is_left_is_told(clock):
    """Under OpenAI's names, with the seconds until the oldest of them counts no more."""
    limiter = RateLimiter()
    limiter.take("requests", "a", TWO_A_MINUTE)
    clock[0] += 15
    assert limiter.headers("a", RateLimits("2/minute", "3/day")) == {
        "x-ratelimit-limit-requests": "2",
        "x-ratelimit-remaining-requests": "1",
        "x-ratelimit-reset-requests": "45s",
        "x-ratelimit-limit-submissions": "3",
        "x-ratelimit-remaining-submissions": "3",
        "x-ratelimit-reset-submissions": "0s",
    }


def test_streams_of_all_are_bounded_too():
    """However many clients there are: what is answered at once has room beside them."""
    streams, one = Streams(3), RateLimits(streams=1)
    with ExitStack() as held:
        for client in "abc":
            held.enter_context(streams.one(client, one))
        for client, told in (("a", "'a' may have 1 streams open"), ("d", "3 streams are open")):
            with pytest.raises(RateLimited, match=told):
                held.enter_context(streams.one(client, one))
    with streams.one("d", one):
        pass
