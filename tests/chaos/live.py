"""The service that is struck: the demo model on two ranks, on a Ray of its own."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml
from processes import processes_of

CONFIG = Path(__file__).parents[2] / "configs" / "toyworld-2rank.yaml"
NAME = "toyworld-2rank"
REPLICA = f"ray::ServeReplica:{NAME}:Replica"
PATIENCE_S = 240.0
POLL_S = 0.05
CALM = {"lease_s": 5.0, "slow_step_s": 5.0}
"""How soon a worker that says nothing counts as lost: sooner than by default."""

Wanted = Callable[[dict[str, Any]], bool]


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def arguments(results: Path, **changes: Any) -> dict[str, Any]:
    """The configuration's, for results in this folder."""
    document = yaml.safe_load(CONFIG.read_text())
    args: dict[str, Any] = document["applications"][0]["args"]
    return args | CALM | {"results": str(results)} | changes


class Live:
    """What is asked of the service while it is struck."""

    def __init__(self, url: str, results: Path) -> None:
        self.url = url
        self.results = results

    def ask(self, path: str) -> httpx.Response | None:
        """The answer; None where nobody gives one."""
        with suppress(httpx.TransportError):
            return httpx.get(f"{self.url}{path}", timeout=10)
        return None

    def until(self, job: str, wanted: Wanted) -> dict[str, Any]:
        """The job's record, once it is as wanted."""
        return self.until_told(f"/jobs/{job}", wanted)

    def until_idle(self) -> None:
        """A replica is there, and no job waits or runs."""
        self.until_told(
            "/health",
            lambda said: (
                said["jobs"]["queued"] + said["jobs"]["running"] == 0 and bool(said["replicas"])
            ),
        )

    def until_told(self, path: str, wanted: Wanted) -> dict[str, Any]:
        """What is said there, once it is as wanted.

        Raises:
            TimeoutError: it never was.
        """
        deadline, told = time.monotonic() + PATIENCE_S, None
        while time.monotonic() < deadline:
            answer = self.ask(path)
            if answer is not None and answer.status_code == 200:
                told = answer.json()
                if wanted(told):
                    return dict(told)
            time.sleep(POLL_S)
        raise TimeoutError(f"{path} never was as wanted: {told}")

    def until_refused(self, body: dict[str, Any]) -> str:
        """The code with which a request is refused, sent until it is."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            with suppress(httpx.TransportError):
                answer = httpx.post(f"{self.url}/generate", json=body, timeout=PATIENCE_S)
                if answer.is_error:
                    return str(answer.json()["error"]["code"])
            time.sleep(POLL_S)
        raise TimeoutError("it was taken all the time")

    def until_there(self, name: str, number: int) -> None:
        """So many processes of this name run."""
        deadline = time.monotonic() + PATIENCE_S
        while len(processes_of(name)) != number:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{name}: {processes_of(name)}")
            time.sleep(POLL_S)

    def until_replaced(self, name: str, before: psutil.Process) -> None:
        """A process of this name runs that was started after another one."""
        deadline, then = time.monotonic() + PATIENCE_S, before.create_time()
        while not any(process.create_time() > then for process in processes_of(name)):
            if time.monotonic() > deadline:
                raise TimeoutError(f"no other {name}")
            time.sleep(POLL_S)


def deploy(results: Path, **changes: Any) -> None:
    """Serves the configuration on the Ray that this process is connected to."""
    from ray import serve

    from warpcache_ray.serving.app import build

    serve.run(build(arguments(results, **changes)), name=NAME, route_prefix="/")


@contextmanager
def served(results: Path) -> Iterator[Live]:
    """The service, in processes below this one, until the block ends."""
    os.environ["RAY_AUTH_MODE"] = "disabled"
    import ray
    from ray import serve

    port = free_port()
    ray.init(address="local", num_cpus=10, include_dashboard=False, log_to_driver=False)
    try:
        serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
        deploy(results)
        live = Live(f"http://127.0.0.1:{port}", results)
        live.until_idle()
        yield live
        serve.shutdown()
    finally:
        ray.shutdown()


def coordinator() -> Any:
    """The handle of the service's coordinator."""
    return _actor(lambda name: name.startswith("coordinator-"))


def ranks() -> list[psutil.Process]:
    """The processes of the two ranks, which have to be idle, the first one first."""
    actors = [_actor(lambda name, i=i: name.endswith(f"-rank-{i}")) for i in range(2)]  # type: ignore[misc]
    return [psutil.Process(_inside(actor, lambda _: os.getpid())) for actor in actors]


def set_clock(ahead_s: float) -> None:
    """From now on the coordinator's clock is ahead of the machine's by so much."""
    _inside(coordinator(), _set_clock, ahead_s)


def _set_clock(_: Any, ahead_s: float) -> None:
    machine = getattr(time.time, "machine", time.time)

    def now() -> float:
        return float(machine()) + ahead_s

    now.machine = machine  # type: ignore[attr-defined]
    time.time = now


def _inside(actor: Any, function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function gives in an actor's process, which knows nothing of this module."""
    import ray

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    return ray.get(actor.__ray_call__.remote(function, *arguments))


def _actor(wanted: Callable[[str], bool]) -> Any:
    import ray

    known = ray.util.list_named_actors(all_namespaces=True)
    (found,) = [k for k in known if NAME in k["name"] and wanted(k["name"])]
    return ray.get_actor(**found)
