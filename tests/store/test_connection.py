"""Which servers are accepted, and what their failures become."""

import asyncio
import logging
import os
import signal
from types import SimpleNamespace

import pytest
from redis.exceptions import ConnectionError, ResponseError

from warpcache_ray.errors import InvalidConfig, Unavailable
from warpcache_ray.store import connection
from warpcache_ray.store.connection import Answers, answers, check, connect
from warpcache_ray.store.events import Event
from warpcache_ray.store.jobs import JobStore, Place, Record

FIRST = Record("job_1", 1, Place.QUEUED, 1.0, {"n": 1})


@pytest.mark.parametrize("url", ["", "localhost:6379", "http://localhost", "redis://h:port"])
def test_urls_that_are_none(url):
    """The message names the field."""
    with pytest.raises(InvalidConfig, match=r"store\.url") as raised:
        connect(url)
    assert raised.value.param == "store.url"


def test_a_password_is_kept_out():
    """Of the message and of what led to it."""
    with pytest.raises(InvalidConfig, match=r"store\.url = 'redis://\*\*\*@h:port'") as raised:
        connect("redis://:hush@h:port")
    assert raised.value.__suppress_context__


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("redis://h:6380/2", "Connection"),
        ("rediss://u:p@h", "SSLConnection"),
        ("unix:///a/b.sock", "UnixDomainSocketConnection"),
    ],
)
def test_urls_of_each_kind(url, kind):
    """Plain and encrypted TCP, and sockets; nobody connects before the first command."""
    assert connect(url).connection_pool.connection_class.__name__ == kind


async def test_our_server_is_accepted(redis):
    """It never evicts."""
    await check(redis)


@pytest.mark.parametrize("rights", ["+@all", "+@all -config"])
@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl"])
async def test_servers_that_evict_are_refused(policy, rights, redis, server):
    """The message has the policy found and the one needed, also where CONFIG is forbidden."""
    await redis.config_set("maxmemory-policy", policy)
    await redis.execute_command("ACL", "SETUSER", "limited", "on", ">secret", "~*", *rights.split())
    limited = connect(f"{server.url}?username=limited&password=secret")
    with pytest.raises(InvalidConfig, match=f"store.url: .* {policy}.* needs noeviction") as raised:
        await check(limited)
    assert raised.value.param == "store.url"
    await limited.aclose()


async def test_a_server_that_tells_nothing_is_accepted(redis, server, caplog):
    """Where INFO is forbidden too, a warning says what is unknown."""
    caplog.set_level(logging.WARNING)
    rights = ["on", ">secret", "~*", "+@all", "-config", "-info"]
    await redis.execute_command("ACL", "SETUSER", "limited", *rights)
    limited = connect(f"{server.url}?username=limited&password=secret")
    await check(limited)
    assert "is unknown" in caplog.text
    assert await JobStore(limited, "app").create(FIRST)
    await limited.aclose()


async def test_wrong_credentials_are_told(server):
    """The message says what is wrong, without the password."""
    stranger = connect(f"{server.url}?username=stranger&password=secret")
    with pytest.raises(Unavailable, match="invalid username-password pair") as raised:
        await check(stranger)
    assert "secret" not in raised.value.message
    await stranger.aclose()


async def test_a_lost_server_is_unavailable_until_it_is_back(store, redis, server):
    """All methods raise Unavailable, none hangs; after a restart the same store works on the same records."""
    await store.create(FIRST)
    os.kill((await redis.info("server"))["process_id"], signal.SIGKILL)
    errors = await asyncio.gather(
        check(redis),
        store.create(FIRST),
        store.swap(FIRST),
        store.get("job_1"),
        store.remove("job_1"),
        store.load(),
        store.ids(Place.QUEUED),
        store.model_epoch(),
        store.raise_epoch(),
        store.events.tell("job_1", Event("step", {})),
        store.events.read("job_1"),
        return_exceptions=True,
    )
    assert {type(error) for error in errors} == {Unavailable}
    assert all(str(error).startswith("the job store can't be reached: ") for error in errors)
    server.start()
    assert await store.load() == [FIRST]
    assert await store.swap(Record("job_1", 2, Place.ENDED, 1.0, {}))


async def test_a_server_that_hangs_is_unavailable(store, redis, monkeypatch, server):
    """A stopped server is given up after a while."""
    await store.create(FIRST)
    pid = (await redis.info("server"))["process_id"]
    monkeypatch.setattr(connection, "TIMEOUT_S", 0.05)
    hasty = connect(server.url)
    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(Unavailable, match="can't be reached"):
            await JobStore(hasty, "app").swap(Record("job_1", 2, Place.ENDED, 1.0, {}))
    finally:
        os.kill(pid, signal.SIGCONT)
    await hasty.aclose()
    assert await store.get("job_1") == FIRST


async def test_a_replica_is_unavailable_for_writes(store, redis):
    """After a failover the client may talk to a server that only reads."""
    await store.create(FIRST)
    await redis.execute_command("REPLICAOF", "127.0.0.1", "1")
    with pytest.raises(Unavailable, match="it is a replica"):
        await store.swap(Record("job_1", 2, Place.ENDED, 1.0, {}))
    assert await store.get("job_1") == FIRST


def test_a_server_that_cannot_save_is_unavailable():
    """A foreign server may refuse writes while its disk is full."""
    with pytest.raises(Unavailable, match="can't save to its disk"), answers():
        raise ResponseError("MISCONF Redis is configured to save RDB snapshots, but it's currently")


def test_errors_of_our_own_stay_what_they_are():
    """A wrong command isn't the server's unavailability."""
    with pytest.raises(ResponseError, match="WRONGTYPE"), answers():
        raise ResponseError("WRONGTYPE Operation against a key")


def test_failures_and_the_time_away_are_counted(monkeypatch):
    """From the first call that fails to the next one that doesn't, or until now; our own errors are none."""
    clock = SimpleNamespace(now=10.0)
    monkeypatch.setattr(connection.time, "monotonic", lambda: clock.now)
    account = Answers()

    def call(error=None):
        with account():
            if error is not None:
                raise error

    call()
    assert (account.failures, account.away_s, account.away) == (0, 0.0, False)
    for clock.now in (11.0, 13.0):
        with pytest.raises(Unavailable):
            call(ConnectionError("gone"))
    clock.now = 14.0
    assert (account.failures, account.away_s, account.away) == (2, 3.0, True)
    clock.now = 15.0
    call()
    with pytest.raises(ResponseError):
        call(ResponseError("WRONGTYPE"))
    clock.now = 99.0
    assert (account.failures, account.away_s, account.away) == (2, 4.0, False)
