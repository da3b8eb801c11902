"""The rank actor: one process, one device, one engine."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import ray

from warpcache_ray.config import ModelConfig, ServiceConfig
from warpcache_ray.errors import (
    Cancelled,
    GenerationFailed,
    InvalidRequest,
    StorageFailed,
    WarpCacheError,
)
from warpcache_ray.policy_spec import parse_policy
from warpcache_ray.serving import logs
from warpcache_ray.serving.artifacts import Artifacts
from warpcache_ray.serving.checkpoints import Checkpoints, Keeper, Pocket
from warpcache_ray.serving.sampling import latents_name

# The engine loads torch and diffusers. Only a rank's own process pays for that, when it is made.
if TYPE_CHECKING:
    from torch import Tensor

    from warpcache_ray.engine.checkpoint import Checkpoint
    from warpcache_ray.engine.events import Control, Result, StepEvent
    from warpcache_ray.engine.stats import CacheStats
    from warpcache_ray.models.weights import Weights
    from warpcache_ray.parallel.xdit import Member


log = logging.getLogger(__name__)

Outcome = tuple[dict[str, Any], dict[str, Any] | None]
"""What came of a call, and the error if there is one."""


@dataclass(slots=True)
class _Attempt:
    """The attempt at hand: what its listeners may ask for, and what they have said."""

    id: str = ""
    step: int = 0
    total: int = 0
    drifts: list[float] = field(default_factory=list)
    counts: dict[str, Any] = field(default_factory=lambda: _totals(None))
    keeper: Keeper | Pocket | None = None
    epoch: int = 0
    resumed_at: int = 0

    def progress(self) -> dict[str, Any]:
        """Running totals, and the drifts so far."""
        place = {"step": self.step, "total": self.total, "epoch": self.epoch}
        return {
            **place,
            "resumed_at": self.resumed_at,
            "checkpoint_step": self.keeper.kept if self.keeper else None,
            "checkpoints": self.keeper.count if self.keeper else 0,
            **self.counts,
            "drifts": list(self.drifts),
        }


class Rank:
    """Generates in one thread; a second one reads its progress and sets its control word, so that no call waits
    for a step and no step for a call. Ranks that share a generation make the same calls; the first one's word counts,
    and it publishes what all have made."""

    def __init__(self, config: ServiceConfig, index: int) -> None:
        import torch

        torch.set_num_threads(config.threads)
        logs.install(config)
        self.config = config
        self.index = index
        self._store: Any = None
        self._lock = threading.Lock()
        self._attempt = _Attempt()
        self._cancelled = ""
        """The attempt that is to end, which may not have begun here."""
        self._handed_back = ""
        """The attempt that is to end with a checkpoint."""
        self._aside = ThreadPoolExecutor(1)

    def open(self) -> tuple[str, int]:
        """Where the other ranks find this one, on a port that was free."""
        from warpcache_ray.parallel.xdit import open_store

        host = ray.util.get_node_ip_address()
        self._store = open_store(host)
        return host, self._store.port

    def load(self, meeting: tuple[str, int] | None) -> dict[str, Any]:
        """Loads the model, together with the ranks that come to the meeting; says what it can make."""
        from warpcache_ray.engine.engine import Engine
        from warpcache_ray.engine.fingerprints import policy_key
        from warpcache_ray.models.weights import weight_bytes

        began, split = time.perf_counter(), None
        weights = _weights(self.config.model)
        if meeting is None:
            self.engine = Engine(weights.load(self.config.model.device))
        else:
            member = self._join(meeting)
            pipeline = member.load(weights)
            self.engine, split = Engine(pipeline, member.ranks), member.split(pipeline)
        self.engine.store.budget = self.config.cache_bytes
        told = {
            "load_seconds": round(time.perf_counter() - began, 3),
            "weight_bytes": weight_bytes(self.engine.pipeline),
            "policy_key": asdict(policy_key(self.engine.pipeline, {})),
        }
        return {**asdict(self.engine.info), **told, "split": split and asdict(split)}

    def _join(self, meeting: tuple[str, int]) -> Member:
        from warpcache_ray.parallel.xdit import connect, join

        store = self._store or connect(*meeting)
        return join(self.config.parallel, self.index, store, self.config.model.device)

    @ray.method(concurrency_group="control")
    def progress(self, attempt: str) -> dict[str, Any]:
        """Running totals of the attempt, its drifts so far and its newest checkpoint; zeros until it begins."""
        with self._lock:
            known = self._attempt if attempt == self._attempt.id else _Attempt()
            return known.progress()

    @ray.method(concurrency_group="control")
    def control(self, attempt: str, epoch: int, cancel: bool) -> None:
        """The word for this attempt's next step boundary; does nothing to any other attempt."""
        with self._lock:
            if cancel:
                self._cancelled = attempt
            if attempt == self._attempt.id:
                self._attempt.epoch = max(self._attempt.epoch, epoch)

    @ray.method(concurrency_group="control")
    def hand_back(self, attempt: str) -> None:
        """Ends this attempt at its next step boundary, having kept a checkpoint."""
        with self._lock:
            self._handed_back = attempt

    def generate(
        self, attempt: dict[str, Any], checkpoint: bytes | None, image: bytes | None = None
    ) -> Outcome:
        """Makes the attempt's video from its image if it has one, the rest of it where there is a checkpoint: what to
        publish, and the error if there is one."""
        with logs.about(job=attempt["job_id"], attempt=attempt["fence"], rank=self.index):
            log.info("the attempt begins")
            made = self._attempted(attempt, checkpoint, image)
            log.info("the attempt ends: %s", made[1]["code"] if made[1] else "succeeded")
            return made

    def _attempted(
        self, attempt: dict[str, Any], checkpoint: bytes | None, image: bytes | None
    ) -> Outcome:
        own = _Attempt(attempt["id"], keeper=self._keeper(attempt), epoch=attempt["epoch"])

        def made() -> dict[str, Any]:
            result = self._make(attempt, own, checkpoint, image)
            if self.index:
                return {}
            published = self._publish(attempt, result)
            if attempt.get("keep_latents"):
                self._aside.submit(self._keep_latents, attempt, own.total, result.latents)
            return published

        return self._outcome(own, made)

    def audit(
        self,
        task: dict[str, Any],
        served: bytes,
        checkpoint: bytes | None,
        image: bytes | None = None,
    ) -> Outcome:
        """Makes a job's video again, uncached (the rest of it where there is a checkpoint), and tells how near to that
        the `served` one is, whose final latents are decoded alike. Told to hand it back, it gives a checkpoint."""
        pocket = Pocket() if self.index == 0 else None
        own = _Attempt(task["id"], keeper=pocket)
        plain = task | {"policy": {"name": "never"}}

        def compared() -> dict[str, Any]:
            from warpcache_ray.quality.fidelity import psnr, ssim

            if _read(served) is None:
                raise GenerationFailed("what was served can't be read")
            try:
                exact = self._make(plain, own, checkpoint, image)
            except Cancelled:
                return {"left_at": pocket and pocket.data}
            kept = self._make(plain, own, served, image)
            if self.index:
                return {}
            shown = kept.frames, exact.frames
            return {"psnr": psnr(*shown), "ssim": ssim(*shown)}

        return self._outcome(own, compared)

    def profile(self, task: dict[str, Any]) -> Outcome:
        """Profiles the model by the task's plan. Told to hand it back, it leaves off before the model's next call."""
        from warpcache_ray.serving.profiling import profiled

        own = _Attempt(task["id"])

        def called() -> None:
            with self._lock:
                # Of how many there will be, nobody knows.
                own.step += 1
                if self._handed_back == own.id:
                    raise Cancelled("left off")

        return self._outcome(own, lambda: profiled(self.engine, task, self.config, called))

    def _outcome(self, own: _Attempt, make: Callable[[], dict[str, Any]]) -> Outcome:
        with self._lock:
            self._attempt = own
        try:
            return make(), None
        except WarpCacheError as error:
            return {}, error.to_dict()
        except Exception as error:
            log.exception("attempt %s failed", own.id)
            return {}, GenerationFailed(f"{type(error).__name__}: {error}").to_dict()
        finally:
            if own.keeper is not None:
                own.keeper.close()

    def _make(
        self,
        attempt: dict[str, Any],
        own: _Attempt,
        checkpoint: bytes | None,
        image: bytes | None,
    ) -> Result:
        from warpcache_ray.engine.events import Generation
        from warpcache_ray.image import read_image

        request, start = attempt["request"], _read(checkpoint)
        own.resumed_at = start.step if start else 0
        fields = {f: request[f] for f in Generation.__slots__ if f in request}
        if image is not None:
            fields["image"] = read_image(image, "image")
        return self.engine.generate(
            Generation(**fields),
            parse_policy(attempt["policy"]),
            lambda event: self._on_step(own, event),
            request=attempt["job_id"],
            epoch=own.epoch,
            checkpoint=start,
            decode=self.index == 0,
        )

    def _keeper(self, attempt: dict[str, Any]) -> Keeper | None:
        if self.index or not self.config.checkpoint_every:
            return None
        return Keeper(Checkpoints.of(self.config), attempt["job_id"], attempt["fence"])

    def _on_step(self, own: _Attempt, event: StepEvent) -> Control:
        from warpcache_ray.engine.events import Control

        done, every = event.index + 1, self.config.checkpoint_every
        with self._lock:
            handed_back = self._handed_back == own.id and done < event.total
        checkpoint = event.checkpoint
        if own.keeper and handed_back and checkpoint:
            own.keeper.keep(checkpoint())
        elif own.keeper and checkpoint and every and done < event.total and done % every == 0:
            own.keeper.offer(checkpoint)
        with self._lock:
            own.step, own.total = done, event.total
            drifts = (record.decision.drift for record in event.decisions)
            own.drifts += [drift for drift in drifts if drift is not None]
            own.counts = _totals(event.stats)
            return Control(own.epoch, cancel=handed_back or self._cancelled == own.id)

    def _publish(self, attempt: dict[str, Any], result: Result) -> dict[str, Any]:
        from warpcache_ray.video import encode

        request = attempt["request"]
        form = request["output_format"]
        began = time.perf_counter()
        data = encode(result.frames, request["fps"], form)
        # The fence in the name keeps a late attempt from overwriting the video of the one that replaced it.
        name = f"{attempt['fence']}.{form}"
        encoded = time.perf_counter()
        video = Artifacts(self.config.artifacts).write(attempt["job_id"], name, data)
        seconds = asdict(result.timings)
        seconds |= {"encode": encoded - began, "store": time.perf_counter() - encoded}
        frames, height, width, _ = result.frames.shape
        return {
            "path": video.url,
            "latents_sha256": result.latents_sha256,
            "epoch": result.epoch,
            "resumed_at": result.resumed_at,
            "warnings": self._warnings(result),
            "decisions": result.stats.timeline(),
            "timings": {stage: round(took, 4) for stage, took in seconds.items()},
            "num_frames": frames,
            "height": height,
            "width": width,
            "bytes": len(data),
        }

    def _keep_latents(self, attempt: dict[str, Any], steps: int, latents: Tensor) -> None:
        """For an audit, beside the video, whose encoding loses some of it. The job doesn't wait for that."""
        from warpcache_ray.engine.checkpoint import final

        data = final(latents, steps).to_bytes()
        try:
            name = latents_name(attempt["fence"])
            Artifacts(self.config.artifacts).write(attempt["job_id"], name, data)
        except StorageFailed as error:
            log.warning("%s won't be audited: %s", attempt["job_id"], error.message)

    def _warnings(self, result: Result) -> list[str]:
        found, budget = [], self.engine.store.budget
        if result.stats.peak_cache_bytes > budget:
            found.append(
                f"cache_bytes = {budget}: this request alone would keep {result.stats.peak_cache_bytes} bytes; "
                "steps that lost what they needed were recomputed"
            )
        if result.tiled:
            found.append("the decoder ran out of memory and worked in tiles: seams are possible")
        return found


def _read(data: bytes | None) -> Checkpoint | None:
    """What to go on from; None where it can't be read, for the job can start anew. All ranks have the same bytes."""
    from warpcache_ray.engine.checkpoint import Checkpoint

    try:
        return None if data is None else Checkpoint.from_bytes(data)
    except InvalidRequest as error:
        log.warning("%s", error.message)
        return None


def _totals(stats: CacheStats | None) -> dict[str, Any]:
    return {
        "decisions": stats.by_branch() if stats else {},
        "cache_bytes": stats.cache_bytes if stats else 0,
        "summary": stats.summary() if stats else {},
    }


def _weights(model: ModelConfig) -> Weights:
    from warpcache_ray.models.weights import Weights

    names = ("revision", "dtype", "files", "dfloat11", "loras", "group_offload")
    return Weights(model.folder or model.path, **{name: getattr(model, name) for name in names})


def rank_environment(config: ServiceConfig) -> dict[str, str]:
    """Environment of a rank's process: its thread count has to be set before torch loads."""
    return {"OMP_NUM_THREADS": str(config.threads)}
