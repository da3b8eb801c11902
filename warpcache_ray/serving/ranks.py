"""The rank actor: one process, one device, one engine."""

from __future__ import annotations

import logging
import threading
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from warpcache_ray.config import ServiceConfig
from warpcache_ray.errors import GenerationFailed, WarpCacheError
from warpcache_ray.policy_spec import parse_policy

# The engine loads torch and diffusers. Only a rank's own process pays for that, when it is made.
if TYPE_CHECKING:
    from warpcache_ray.engine.events import Control, Result, StepEvent
    from warpcache_ray.engine.stats import CacheStats
    from warpcache_ray.parallel.xdit import Member


log = logging.getLogger(__name__)


class Rank:
    """Generates in one thread; a second one reads its progress and sets its control word, so that no call waits
    for a step and no step for a call. Ranks that share a generation make the same calls; the first one's word counts,
    and it publishes what all have made."""

    def __init__(self, config: ServiceConfig, index: int) -> None:
        import torch

        torch.set_num_threads(config.threads)
        self.config = config
        self.index = index
        self._store: Any = None
        self._lock = threading.Lock()
        self._attempt = ""
        self._cancelled = ""
        self._step = 0
        self._total = 0
        self._drifts: list[float] = []
        self._counts: dict[str, Any] = _totals(None)

    def open(self) -> tuple[str, int]:
        """Where the other ranks find this one, on a port that was free."""
        from warpcache_ray.parallel.xdit import open_store

        host = ray.util.get_node_ip_address()
        self._store = open_store(host)
        return host, self._store.port

    def load(self, meeting: tuple[str, int] | None) -> dict[str, Any]:
        """Loads the model, together with the ranks that come to the meeting; says what it can make."""
        from warpcache_ray.engine.engine import Engine

        model = self.config.model
        path = model.folder or model.path
        if meeting is None:
            self.engine = Engine.load(path, model.dtype, model.device, model.revision)
        else:
            member = self._join(meeting)
            self.engine = Engine(member.load(path, model.dtype, model.revision), member.ranks)
        self.engine.store.budget = self.config.cache_bytes
        return asdict(self.engine.info)

    def _join(self, meeting: tuple[str, int]) -> Member:
        from warpcache_ray.parallel.xdit import connect, join

        store = self._store or connect(*meeting)
        return join(self.config.parallel, self.index, store, self.config.model.device)

    @ray.method(concurrency_group="control")
    def progress(self, attempt: str) -> dict[str, Any]:
        """Running totals of the attempt, and its drifts so far; zeros until it begins."""
        with self._lock:
            if attempt != self._attempt:
                return {"step": 0, "total": 0, **_totals(None), "drifts": []}
            return {
                "step": self._step,
                "total": self._total,
                **self._counts,
                "drifts": list(self._drifts),
            }

    @ray.method(concurrency_group="control")
    def cancel(self, attempt: str) -> None:
        """Ends this attempt at its next step boundary; does nothing to any other."""
        with self._lock:
            self._cancelled = attempt

    def generate(self, attempt: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """Makes the attempt's video: what to publish, and the error if there is one."""
        from warpcache_ray.engine.events import Generation

        with self._lock:
            self._attempt = attempt["id"]
            self._step, self._total, self._drifts = 0, 0, []
            self._counts = _totals(None)
        request = attempt["request"]
        fields = {f: request[f] for f in Generation.__slots__ if f in request}
        try:
            result = self.engine.generate(
                Generation(**fields),
                parse_policy(attempt["policy"]),
                self._on_step,
                request=attempt["job_id"],
            )
            return self._publish(attempt, result) if self.index == 0 else {}, None
        except WarpCacheError as error:
            return {}, error.to_dict()
        except Exception as error:
            log.exception("attempt %s failed", attempt["id"])
            return {}, GenerationFailed(f"{type(error).__name__}: {error}").to_dict()

    def _on_step(self, event: StepEvent) -> Control:
        from warpcache_ray.engine.events import Control

        with self._lock:
            self._step, self._total = event.index + 1, event.total
            self._drifts += [d.drift for d in event.decisions.values() if d.drift is not None]
            self._counts = _totals(event.stats)
            cancelled = self._cancelled == self._attempt
        return Control.CANCEL if cancelled else Control.CONTINUE

    def _publish(self, attempt: dict[str, Any], result: Result) -> dict[str, Any]:
        from warpcache_ray.video import write_video

        request = attempt["request"]
        folder = self.config.results_folder
        folder.mkdir(parents=True, exist_ok=True)
        # The fence in the name keeps a late attempt from overwriting the video of the one that replaced it.
        path = folder / f"{attempt['job_id']}.{attempt['fence']}.{request['output_format']}"
        write_video(path, result.frames, request["fps"], request["output_format"])
        frames, height, width, _ = result.frames.shape
        return {
            "path": str(path),
            "latents_sha256": result.latents_sha256,
            "timings": {k: round(v, 4) for k, v in asdict(result.timings).items()},
            "num_frames": frames,
            "height": height,
            "width": width,
            "bytes": Path(path).stat().st_size,
        }


def _totals(stats: CacheStats | None) -> dict[str, Any]:
    counted = ("hits", "misses", "warped", "recomputed")
    return {
        **{name: getattr(stats, name) if stats else 0 for name in counted},
        "cache_bytes": stats.cache_bytes if stats else 0,
        "summary": stats.summary() if stats else {},
    }


def rank_environment(config: ServiceConfig) -> dict[str, str]:
    """Environment of a rank's process: its thread count has to be set before torch loads."""
    return {"OMP_NUM_THREADS": str(config.threads)}
