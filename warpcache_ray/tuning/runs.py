"""Runs of a model that its profile rests on: each made once, kept on disk, and counted."""

from __future__ import annotations

import fcntl
import io
import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from warpcache_ray.core.policy import Policy
from warpcache_ray.core.types import Course
from warpcache_ray.engine.fingerprints import policy_key
from warpcache_ray.engine.install import Installation, find
from warpcache_ray.errors import InvalidRequest
from warpcache_ray.policy_document import Target, digest
from warpcache_ray.policy_spec import describe_policy
from warpcache_ray.quality.fidelity import psnr, ssim
from warpcache_ray.tuning.record import record, run

TRACED_SEED = 0
"""The request with this seed keeps its latents step by step."""
FORMAT = 2
"""Of the files: what another one wrote isn't read."""
NOISE = 1e-6
"""Relative change of the first latents that nobody would call another request."""


class Request(NamedTuple):
    """A prompt and its seed."""

    prompt: str
    seed: int


@dataclass(frozen=True, slots=True)
class Reference:
    """An uncached run: video (T, H, W, 3), Gram matrix of all outputs, where its steps stand; `trajectory` has the
    latents after each step, if it is traced, `blocks` the changes (branches, blocks, steps)."""

    frames: NDArray[np.uint8]
    gram: NDArray[np.float64]
    course: Course
    branches: tuple[str, ...]
    shape: tuple[int, ...]
    trajectory: NDArray[np.float32] | None
    blocks: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Score:
    """A run against its reference. `calls` is the number of computed steps; `errors` has the mean square error of the
    latents after each step, where the reference has them."""

    psnr: float
    ssim: float
    calls: float
    errors: tuple[float, ...] | None = None

    def keeps(self, target: Target) -> bool:
        """Whether it has the quality; a target of calls asks for none."""
        found = {"psnr": self.psnr, "ssim": self.ssim, "calls": math.inf}[target.metric]
        return found >= target.bound


class Runs:
    """Runs of one pipeline under one set of arguments. What is in `work` isn't run again; one process at a time.

    Raises:
        InvalidRequest: the pipeline has no transformer, or the cache is on.
    """

    def __init__(self, pipe: Any, arguments: Mapping[str, Any], work: Path) -> None:
        if find(pipe) is not None:
            raise InvalidRequest("the cache is on already; call disable_dit_cache first", "pipe")
        self.pipe = pipe
        self.arguments = {**arguments, "output_type": "np"}
        self.key = policy_key(pipe, arguments)
        form = f"{pipe.transformer.dtype} on {pipe.transformer.device}"
        content = digest(
            {"key": asdict(self.key), "arguments": arguments, "form": form, "format": FORMAT}
        )
        self.folder = work / content.removeprefix("sha256:")
        self.folder.mkdir(parents=True, exist_ok=True)
        self.done: dict[str, float] = {}

    @property
    def generations(self) -> float:
        """Cost of all runs that were asked for, in uncached ones; those of an earlier process count too."""
        return sum(self.done.values())

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other profilers of the same runs away.

        Raises:
            InvalidRequest: there is one.
        """
        with (self.folder / "lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise InvalidRequest(
                    f"work = {str(self.folder)!r}: another profiler is at work on this model and size; wait for it",
                    "work",
                ) from error
            yield

    def reference(self, request: Request) -> Reference:
        """The uncached run."""
        name = f"reference-{_short(request)}.npz"
        self.done[name] = 1.0
        return _load(self._kept(name, lambda: self._recorded(request)))

    def noise(self, request: Request) -> Score:
        """The uncached run under a harmless numerical disturbance."""
        name = f"noise-{_short(request)}.json"
        self.done[name] = 1.0

        def measure() -> bytes:
            with perturbed(self.pipe, NOISE):
                frames = _pixels(run(self.pipe, self._call(request)))
            return _score(frames, self.reference(request), float(self.key.steps), None)

        return _read(self._kept(name, measure))

    def score(self, request: Request, policy: Policy) -> Score:
        """The run under a policy."""
        described = digest(describe_policy(policy)).removeprefix("sha256:")
        name = f"score-{_short(request)}-{described}.json"
        reference = self.reference(request)
        score = _read(self._kept(name, lambda: self._compared(request, policy, reference)))
        self.done[name] = score.calls / self.key.steps
        return score

    def _recorded(self, request: Request) -> bytes:
        latents: list[Tensor] = []
        trace = request.seed == TRACED_SEED
        call = self._call(request) | (_watching(latents) if trace else {})
        recording = record(self.pipe, call)
        assert recording.course is not None
        about = {
            "course": asdict(recording.course),
            "branches": recording.branches,
            "shape": recording.shape,
        }
        trajectory = {"trajectory": torch.stack(latents).numpy()} if trace else {}
        return _packed(
            frames=_pixels(recording.result),
            gram=recording.gram().numpy(),
            blocks=np.array([recording.blocks.get(b, []) for b in recording.branches], np.float32),
            about=np.array(json.dumps(about)),
            **trajectory,
        )

    def _compared(self, request: Request, policy: Policy, reference: Reference) -> bytes:
        latents: list[Tensor] = []
        installation = Installation(self.pipe, policy)
        try:
            out = run(self.pipe, self._call(request) | _watching(latents))
            assert installation.last is not None
            stats = installation.last.stats
        finally:
            installation.remove()
        calls = stats.recomputed * self.key.steps / len(stats.records)
        errors = None
        if reference.trajectory is not None:
            steps = zip(latents, torch.from_numpy(reference.trajectory), strict=True)
            errors = [float((ours - plain).square().mean()) for ours, plain in steps]
        return _score(_pixels(out), reference, calls, errors)

    def _call(self, request: Request) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(request.seed)
        return {**self.arguments, "prompt": request.prompt, "generator": generator}

    def _kept(self, name: str, make: Callable[[], bytes]) -> Path:
        file = self.folder / name
        if not file.exists():
            content = make()
            # Written aside first: a file that exists is whole.
            draft = file.with_name(f"{name}.draft")
            draft.write_bytes(content)
            draft.replace(file)
        return file


@contextmanager
def perturbed(pipe: Any, relative: float) -> Iterator[None]:
    """The first latents of each run are (1 + `relative`) times what they were."""
    prepare = pipe.prepare_latents

    def prepared(*args: Any, **kwargs: Any) -> Any:
        made = prepare(*args, **kwargs)
        # Some pipelines prepare conditions and masks beside the latents.
        first, *rest = made if isinstance(made, tuple) else (made,)
        scaled = first * (1 + relative)
        return (scaled, *rest) if isinstance(made, tuple) else scaled

    pipe.prepare_latents = prepared
    try:
        yield
    finally:
        del pipe.prepare_latents


def _watching(latents: list[Tensor]) -> dict[str, Any]:
    def ended(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        latents.append(tensors["latents"].detach().float().cpu())
        return {}

    return {"callback_on_step_end": ended}


def _pixels(output: Any) -> NDArray[np.uint8]:
    return (np.asarray(output[0]) * 255).round().astype(np.uint8)


def _score(
    frames: NDArray[np.uint8], reference: Reference, calls: float, errors: list[float] | None
) -> bytes:
    found = {
        "psnr": psnr(frames, reference.frames),
        "ssim": ssim(frames, reference.frames),
        "calls": calls,
        "errors": errors,
    }
    return json.dumps(found).encode()


def _read(file: Path) -> Score:
    found = json.loads(file.read_text())
    errors = found.pop("errors")
    return Score(**found, errors=None if errors is None else tuple(errors))


def _packed(**arrays: Any) -> bytes:
    out = io.BytesIO()
    np.savez_compressed(out, **arrays)
    return out.getvalue()


# Candidates come request by request, so few references are needed at a time.
@lru_cache(maxsize=2)
def _load(file: Path) -> Reference:
    with np.load(file) as kept:
        about = json.loads(str(kept["about"]))
        course: dict[str, Any] = {
            n: tuple(v) if isinstance(v, list) else v for n, v in about["course"].items()
        }
        trajectory = kept.get("trajectory")
        return Reference(
            kept["frames"],
            kept["gram"],
            Course(**course),
            tuple(about["branches"]),
            tuple(about["shape"]),
            trajectory,
            kept["blocks"],
        )


def _short(request: Request) -> str:
    return digest(request._asdict()).removeprefix("sha256:")
