"""A service on a port of this machine, with a replica in the same process that paints: for browsers to look at."""

from __future__ import annotations

import asyncio
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import uvicorn
from hubs import INFO, totals

from warpcache_ray.config import ServiceConfig
from warpcache_ray.errors import GenerationFailed
from warpcache_ray.serving.coordinator import Coordinator
from warpcache_ray.serving.ingress import build_api
from warpcache_ray.store.server import EmbeddedServer
from warpcache_ray.video import write_video

STEPS = 4
BRANCH = {
    "step": [0, 1, 2, 3],
    "decision": ["recompute", "blend", "reuse", "recompute"],
    "drift": [None, 0.03, 0.05, 0.31],
    "threshold": [None, 0.08, 0.08, 0.08],
    "reason": ["warmup", "", "", "over the threshold"],
}
FULL = {**BRANCH, "decision": ["recompute"] * STEPS, "drift": [None] * 4, "threshold": [None] * 4}


@dataclass
class Painter:
    """Makes a step when it may: `pace` says when. A prompt with `fail` in it fails."""

    hub: Coordinator
    folder: Path
    pace: threading.Event = field(default_factory=threading.Event)
    """Clear: jobs stand still at their second step."""

    async def work(self) -> None:
        """Until it is cancelled."""
        while True:
            attempt = await self.hub.claim("painter", INFO | {"takes_image": "none"}, 4.0)
            if attempt is not None:
                await self._make(attempt)

    async def _make(self, attempt: dict[str, Any]) -> None:
        job, fence, asked = attempt["job_id"], attempt["fence"], attempt["request"]
        for step in range(1, STEPS + 1):
            order = await self.hub.report(
                job, fence, totals(step, hits=step - 1), "painter", INFO | {"takes_image": "none"}
            )
            while step == 2 and not self.pace.is_set() and not order.cancel:
                order = await self.hub.control(job, fence, 0, 0.05)
            if order.cancel or "fail" in asked["prompt"]:
                told = {"code": "cancelled"} if order.cancel else {}
                error = GenerationFailed("the paint has run out").to_dict() | told
                await self.hub.finish(job, fence, {}, error)
                return
        await self._publish(attempt, asked)

    async def _publish(self, attempt: dict[str, Any], asked: dict[str, Any]) -> None:
        uncached = attempt["policy"]["name"] == "never"
        frames = painted(asked, 0 if uncached else 6)
        path = self.folder / f"{attempt['job_id']}.{asked['output_format']}"
        write_video(path, frames, asked["fps"], asked["output_format"])
        columns = FULL if uncached else BRANCH
        decisions = {f"transformer.{branch}": columns for branch in ("cond", "uncond")}
        await self.hub.keep_decisions(attempt["job_id"], attempt["fence"], decisions)
        result = {"path": str(path), "latents_sha256": str(uncached) * 16, "resumed_at": 0}
        result |= {"num_frames": len(frames), "height": asked["height"], "width": asked["width"]}
        result["timings"] = {"denoise": 4.0 if uncached else 2.0}
        await self.hub.finish(attempt["job_id"], attempt["fence"], result, None)


def painted(asked: dict[str, Any], shift: int) -> np.ndarray:
    """A square that moves, over grey that is `shift` lighter."""
    shape = (asked["num_frames"], asked["height"], asked["width"], 3)
    frames = np.full(shape, 60 + shift, np.uint8)
    for index, frame in enumerate(frames):
        frame[8:20, 2 * index : 2 * index + 12] = (220, 60, 40)
    return frames


class Actor:
    """Gives a coordinator's methods the calling convention of a Ray handle."""

    def __init__(self, hub: Coordinator) -> None:
        self._hub = hub

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=getattr(self._hub, name))


@contextmanager
def painting(
    config: ServiceConfig, store: EmbeddedServer, port: int, folder: Path
) -> Iterator[Painter]:
    """The service, until the block ends; all of it runs in one further thread."""
    hub = Coordinator(uuid.uuid4().hex, config, store)
    painter = Painter(hub, folder)
    painter.pace.set()
    server = uvicorn.Server(
        uvicorn.Config(
            build_api(config, Actor(hub)), port=port, log_level="warning", lifespan="off"
        )
    )

    async def run() -> None:
        work = asyncio.create_task(painter.work())
        await server.serve()
        work.cancel()

    thread = threading.Thread(target=asyncio.run, args=(run(),))
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield painter
    server.should_exit = server.force_exit = True
    thread.join()
