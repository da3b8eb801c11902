"""Real ranks as child processes, and the cases that they and a single rank run alike.

`Group` starts the processes once; cases are sent as (name of a method of `Rank`, arguments), so that many run in one
group. One that doesn't answer in time is killed: a deadlock fails its test, not the suite.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import traceback
from contextlib import nullcontext
from multiprocessing.connection import Client, Connection, Listener, wait
from typing import Any

from faults import exhaust, local_attention, rows_apart
from runs import CALL, Overheard, forward, generate, quiet, run

LAYOUTS: dict[str, Any] = {
    "ulysses": (2, 1, 1),
    "ring": (1, 2, 1),
    "cfg": (1, 1, 2),
    "ulysses × ring": (2, 2, 1),
    "ulysses × cfg": (2, 1, 2),
    "ring × cfg": (1, 2, 2),
    "ulysses, vae": (2, 1, 1, True),
    "cfg, vae": (1, 1, 2, True),
    "ulysses × cfg, vae": (2, 1, 2, True),
}
_KEY = b"ranks"


class Group:
    """Processes that join layouts and run cases."""

    def __init__(self, size: int = 2, patience_s: float = 120.0) -> None:
        self.size = size
        self.patience_s = patience_s
        self.processes: list[subprocess.Popen[bytes]] = []
        self.lines: list[Connection] = []
        self.layout = ""

    def start(self) -> None:
        """Starts them, if they aren't there."""
        if self.processes:
            return
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        with Listener(backlog=self.size, authkey=_KEY) as listener:
            for rank in range(self.size):
                command = [sys.executable, __file__, str(listener.address), str(rank)]
                self.processes.append(subprocess.Popen(command, env=environment))
            lines = [listener.accept() for _ in self.processes]
        # They come in any order, each with its rank.
        self.lines = [line for _, line in sorted((line.recv(), line) for line in lines)]

    def stop(self) -> None:
        """Kills them."""
        for process in self.processes:
            process.kill()
            process.wait()
        self.processes, self.lines, self.layout = [], [], ""

    def run(self, layout: str, case: str, **arguments: Any) -> list[Any]:
        """What the case gives on each rank."""
        self.start()
        if layout != self.layout:
            port = self._all("listen", 0)[0]
            self._all("enter", layout=layout, port=port)
            self.layout = layout
        return self._all(case, **arguments)

    def _all(self, case: str, *ranks: int, **arguments: Any) -> list[Any]:
        lines = [self.lines[rank] for rank in ranks or range(self.size)]
        for line in lines:
            line.send((case, arguments))
        answers: dict[Connection, tuple[bool, Any]] = {}
        until = time.monotonic() + self.patience_s
        while silent := [line for line in lines if line not in answers]:
            ready = wait(silent, max(0.0, until - time.monotonic()))
            if not ready:
                break
            for line in ready:
                answers[line] = _received(line)
                if answers[line][0]:
                    # The others may wait for it in vain.
                    until = min(until, time.monotonic() + 5.0)
        failures = [text for failed, text in answers.values() if failed]
        if silent or failures:
            self.stop()
            if failures:
                raise RuntimeError("\n".join(failures))
            raise TimeoutError(f"{case} {arguments}: no answer; the ranks wait for each other")
        return [answers[line][1] for line in lines]


def _received(line: Connection) -> tuple[bool, Any]:
    """Whether the case failed, and what it gave or its traceback."""
    try:
        failed, given = line.recv()
    except EOFError:
        return True, "a rank died"
    return failed, given


class Rank:
    """One process's side: what the cases share, and the cases."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.store: Any = None
        self.member: Any = None
        self.ranks: Any = None
        self.engines: dict[str, Any] = {}

    def listen(self) -> int:
        """Rank 0 opens a store; its port."""
        from warpcache_ray.parallel.xdit import open_store

        self.store = open_store()
        return int(self.store.port)

    def enter(self, layout: str, port: int) -> None:
        """Leaves the layout it is in and joins another."""
        from warpcache_ray.parallel.layout import Layout
        from warpcache_ray.parallel.xdit import connect, join

        if self.member is not None:
            self.member.leave()
        if self.rank:
            self.store = connect("127.0.0.1", port)
        self.member = join(Layout(*LAYOUTS[layout]), self.rank, self.store)
        self.ranks = Overheard(self.member.ranks)
        self.engines.clear()

    def generate(
        self,
        folder: str,
        local: bool = False,
        words: dict[int, int] | None = None,
        **arguments: Any,
    ) -> dict[str, Any]:
        """A run of a model that this layout shares; `local` keeps attention within each shard. Only rank 0 is told the
        words."""
        self.ranks.said = []
        told = words if self.rank == 0 else None
        with local_attention() if local else nullcontext():
            made = generate(self._engine(folder), words=told, **arguments)
        return {**made, "said": self.ranks.said}

    def forward(self, folder: str, **inputs: Any) -> Any:
        """One call of a Cosmos model that this layout shares."""
        return forward(self._load(folder).transformer, **inputs)

    def dressed(self, folder: str, lora: str, file: str) -> Any:
        """The latents of a model from a single file that wears an adapter."""
        from warpcache_ray.engine.engine import Engine
        from warpcache_ray.models.weights import Weights

        weights = Weights(folder, files={"transformer": file}, loras={"ink": lora})
        return generate(Engine(self.member.load(weights), self.ranks), lora="ink")["latents"]

    def refused(self, folder: str, **arguments: Any) -> tuple[str, str]:
        """Name and message of what a run that can't be shared raises."""
        from warpcache_ray.errors import WarpCacheError

        try:
            self.generate(folder, **arguments)
        except WarpCacheError as error:
            return type(error).__name__, error.message
        raise AssertionError("it was shared")

    def decode(self, folder: str, latents: Any, apart: bool = False) -> tuple[Any, float]:
        """What this layout's VAE makes of latents, and its seconds; `apart` without the rows beyond each rank's."""
        import torch

        vae = self._engine(folder).pipeline.vae
        began = time.perf_counter()
        with torch.no_grad(), rows_apart() if apart else nullcontext():
            video = vae.decode(torch.from_numpy(latents), return_dict=False)[0]
        return video.numpy(), time.perf_counter() - began

    def video(self, folder: str, exhausted: tuple[int, ...] = ()) -> tuple[Any, str]:
        """The engine's frames and its latents' fingerprint; the decoders of some ranks run out of memory once."""
        engine = self._engine(folder)
        if self.rank in exhausted:
            exhaust(engine.pipeline.vae)
        return self._video(engine)

    def video_after_oom(self, folder: str) -> tuple[Any, str]:
        """What an engine makes after a video for which the memory of no rank sufficed."""
        from warpcache_ray.errors import OutOfMemory

        engine = self._engine(folder)
        exhaust(engine.pipeline.vae)
        try:
            self._video(engine)
        except OutOfMemory:
            return self._video(engine)
        raise AssertionError("it sufficed")

    def _load(self, folder: str) -> Any:
        from warpcache_ray.models.weights import Weights

        return self.member.load(Weights(folder))

    def _engine(self, folder: str) -> Any:
        from warpcache_ray.engine.engine import Engine

        if folder not in self.engines:
            self.engines[folder] = Engine(self._load(folder), self.ranks)
        return self.engines[folder]

    def _video(self, engine: Any) -> tuple[Any, str]:
        from warpcache_ray.engine.events import Generation
        from warpcache_ray.policy_spec import parse_policy

        asked = Generation("a cat", 0, **CALL)
        result = engine.generate(asked, parse_policy("never"), decode=self.rank == 0)
        return result.frames, result.latents_sha256

    def fingerprint(self, folder: str) -> str:
        """The model's, as this layout loads it."""
        from warpcache_ray.engine.fingerprints import fingerprint

        return fingerprint(self._load(folder).transformer)

    def others_first_block_cache(self, folder: str, threshold: float) -> None:
        """A run under diffusers' own first-block cache."""
        from diffusers import FirstBlockCacheConfig

        pipe = quiet(self._load(folder))
        pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=threshold))
        run(pipe)

    def agree(self, word: int) -> int:
        """Rank 0's word."""
        return int(self.member.ranks.broadcast(word + self.rank))


def serve(address: str, rank: int) -> None:
    """Runs cases until the line closes."""
    with Client(address, authkey=_KEY) as line:
        line.send(rank)
        import cosmos_guardrail
        import torch

        torch.set_num_threads(1)
        cosmos_guardrail.stand_in()
        own = Rank(rank)
        while True:
            try:
                case, arguments = line.recv()
            except EOFError:
                return
            try:
                line.send((False, getattr(own, case)(**arguments)))
            except Exception:
                line.send((True, f"rank {rank}: {traceback.format_exc()}"))


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]))
