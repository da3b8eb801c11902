"""The service as it is on a cluster: a head node that serves nothing, a worker node, and Ray's state in Redis."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
from live import Live, deploy, free_port
from servers import of_the_system

RAY = (sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats")
NODE = ("--node-ip-address", "127.0.0.1")


class Cluster:
    """Two nodes on this machine, each with processes of its own; clients come by the worker's proxy."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.gcs, self.redis, self.head_http, self.http = (free_port() for _ in range(4))
        self.live = Live(f"http://127.0.0.1:{self.http}", folder / "results")
        self._started: list[subprocess.Popen[bytes]] = []
        self._heads = 0
        self._head: subprocess.Popen[bytes] | None = None

    @property
    def store(self) -> str:
        """Where the jobs are; Ray's state is beside them."""
        return f"redis://127.0.0.1:{self.redis}"

    def start(self) -> None:
        """Redis, both nodes, and the service on them."""
        server = of_the_system()
        assert server is not None, "redis-server isn't installed"
        kept = ("--appendonly", "yes", "--appendfsync", "always", "--save", "")
        self._run("redis", str(server), "--port", str(self.redis), "--dir", str(self.folder), *kept)
        self.start_head()
        self._run("worker", *RAY, *NODE, "--address", f"127.0.0.1:{self.gcs}", "--num-cpus", "10")
        deploying = multiprocessing.get_context("spawn").Process(target=_deploy, args=self._place())
        deploying.start()
        deploying.join()
        self.live.until_idle()

    def start_head(self) -> None:
        """The head node, for the first time or in place of one that died."""
        # In a folder of its own, as in a new container: in the old one it takes the worker's raylet for a living head.
        self._heads += 1
        ports = ("--port", str(self.gcs), "--ray-client-server-port", str(free_port()))
        where = ("--temp-dir", str(self.folder / f"h{self._heads}"), "--include-dashboard", "false")
        self._head = self._run("head", *RAY, *NODE, "--head", "--num-cpus", "0", *ports, *where)

    def kill_head(self) -> None:
        """`kill -9` for all of the head node's processes: Ray's state, its raylet, Serve's controller."""
        assert self._head is not None
        _kill(self._head)

    def stop(self) -> None:
        """Ends all that was started, the last one first."""
        for started in reversed(self._started):
            _kill(started)

    def _place(self) -> tuple[int, int, Path, str]:
        return self.gcs, self.head_http, self.live.results, self.store

    def _run(self, name: str, *command: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.log").open("ab") as log:
            started = subprocess.Popen(
                command, stdout=log, stderr=log, env={**os.environ, **self._environment()}
            )
        self._started.append(started)
        return started

    def _environment(self) -> dict[str, str]:
        return {
            "RAY_AUTH_MODE": "disabled",
            "RAY_REDIS_ADDRESS": f"127.0.0.1:{self.redis}",
            "RAY_SERVE_WORKER_PROXY_HTTP_PORT": str(self.http),
        }


@contextmanager
def clustered() -> Iterator[Cluster]:
    """A cluster, until the block ends."""
    # Not a test's own folder: the paths of Ray's sockets would be too long.
    with tempfile.TemporaryDirectory(prefix="wc", ignore_cleanup_errors=True) as folder:
        cluster = Cluster(Path(folder))
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.stop()


def _deploy(gcs: int, http: int, results: Path, store: str) -> None:
    os.environ["RAY_AUTH_MODE"] = "disabled"
    import ray
    from ray import serve

    deadline = time.monotonic() + 120
    while True:
        try:
            ray.init(address=f"127.0.0.1:{gcs}", log_to_driver=False)
        except ConnectionError:
            assert time.monotonic() < deadline
            time.sleep(1)
            continue
        break
    while sum(node["Alive"] for node in ray.nodes()) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.5)
    serve.start(proxy_location="EveryNode", http_options={"host": "127.0.0.1", "port": http})
    options: dict[str, Any] = {"url": store}
    deploy(results, store=options)


def _kill(started: subprocess.Popen[bytes]) -> None:
    if started.poll() is not None:
        return
    family: list[psutil.Process] = []
    with suppress(psutil.NoSuchProcess):
        parent = psutil.Process(started.pid)
        family = [parent, *parent.children(recursive=True)]
    for process in family:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    started.wait()
