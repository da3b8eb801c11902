"""The service over a real socket, without Ray: its routes, its coordinator and a store, and by hand the replica and
what goes wrong."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
import uuid
from collections.abc import Coroutine
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import uvicorn
from documents import KEY
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from warpcache_ray.access_config import AccessConfig
from warpcache_ray.config import Defaults, Limits, ModelConfig, ServiceConfig
from warpcache_ray.errors import Cancelled
from warpcache_ray.serving.coordinator import Coordinator
from warpcache_ray.serving.ingress import build_api
from warpcache_ray.store.server import EmbeddedServer

DEFAULTS = Defaults(height=64, width=64, num_frames=17, num_inference_steps=4, fps=8)
MODEL = ModelConfig("x", device="cpu", defaults=DEFAULTS, limits=Limits(queue=8))
INFO = {"size_multiple": 16, "frame_multiple": 4, "split": None, "policy_key": asdict(KEY)}
CLAIM_S = 0.2
STEP_S = 0.02
VIDEO = b"a video"


@dataclass(frozen=True)
class Fault:
    """What happens to the next request with this method and end of the path, once: the service answers with a status
    instead, or carries it out and breaks the connection after so many pieces of the body."""

    method: str
    path: str
    status: int = 0
    cut_after: int = 0


class Faulty:
    """The routes, with faults before them."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.faults: list[Fault] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        fault = next((f for f in self.faults if _concerns(f, scope)), None)
        if fault is None:
            await self._app(scope, receive, send)
            return
        self.faults.remove(fault)
        if fault.status:
            headers = [(b"content-type", b"text/plain")]
            start = {"type": "http.response.start", "status": fault.status, "headers": headers}
            await send(start)
            await send({"type": "http.response.body", "body": b"no such path"})
            return
        left = [None] * fault.cut_after

        async def cut(message: Message) -> None:
            if message["type"] == "http.response.body":
                if not left:
                    raise ConnectionResetError
                left.pop()
            await send(message)

        await self._app(scope, receive, cut)


def _concerns(fault: Fault, scope: Scope) -> bool:
    return scope["type"] == "http" and (
        scope["method"] == fault.method and scope["path"].endswith(fault.path)
    )


class Service:
    """A service in a thread of its own, for those who have `access`. `hub` is its coordinator; ask it by `call`."""

    def __init__(self, server: EmbeddedServer, folder: Path, access: AccessConfig) -> None:
        self._folder = folder
        self.hub = Coordinator(uuid.uuid4().hex, ServiceConfig(MODEL, access=access), server)
        by_ray = SimpleNamespace(
            **{name: SimpleNamespace(remote=getattr(self.hub, name)) for name in _METHODS}
        )
        self.faulty = Faulty(build_api(self.hub.config, by_ray))
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        config = uvicorn.Config(self.faulty, log_level="critical", lifespan="off")
        self._uvicorn = uvicorn.Server(config)
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self._thread.start()
        while not self._uvicorn.started:
            time.sleep(0.01)

    def call(self, asked: Coroutine[Any, Any, Any]) -> Any:
        """What the coordinator answers."""
        return asyncio.run_coroutine_threadsafe(asked, self._loop).result(10)

    def forget(self, job_id: str) -> None:
        """Loses a job."""

        async def remove() -> None:
            await (await self.hub._jobs()).remove(job_id)

        self.call(remove())

    def stop(self) -> None:
        """Ends it."""
        self._uvicorn.should_exit = self._uvicorn.force_exit = True
        self._thread.join()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        replica = asyncio.create_task(self._work())
        await self._uvicorn.serve([self._socket])
        replica.cancel()

    async def _work(self) -> None:
        while True:
            attempt = await self.hub.claim("replica", INFO, CLAIM_S)
            if attempt is not None:
                await self._run(attempt)

    async def _run(self, attempt: dict[str, Any]) -> None:
        place, steps = (
            (attempt["job_id"], attempt["fence"]),
            attempt["request"]["num_inference_steps"],
        )
        for step in range(1, steps + 1):
            await asyncio.sleep(STEP_S)
            order = await self.hub.report(*place, _totals(step, steps), "replica", INFO)
            if order.cancel:
                await self.hub.finish(*place, {}, Cancelled("cancelled").to_dict())
                return
        path = self._folder / f"{attempt['job_id']}.mp4"
        path.write_bytes(VIDEO)
        await self.hub.finish(*place, {"path": str(path), "bytes": len(VIDEO)}, None)


_METHODS = (
    "find",
    "submit",
    "get",
    "wait",
    "events",
    "cancel",
    "health",
    "video_path",
    "for_owner",
)


def _totals(step: int, steps: int) -> dict[str, Any]:
    counted = {"hits": 0, "misses": 0, "warped": 0, "recomputed": 1, "cache_bytes": 8}
    place = {"step": step, "total": steps, "epoch": 0, "checkpoint_step": None}
    rest = {"summary": {"peak_memory_bytes": 2**20}, "drifts": [], "peak_memory_bytes": 2**20}
    return {**place, **counted, **rest}
