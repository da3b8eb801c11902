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
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from multiprocessing.connection import Client, Connection, Listener, wait
from typing import Any

from faults import exhaust, local_attention, rows_apart

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
CALL = {"height": 32, "width": 32, "num_frames": 9, "num_inference_steps": 8}
NEAR = 1e-5
"""Drifts this close to their threshold may fall on either side of it."""
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
        self.pipes: dict[str, Any] = {}

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
        self.pipes.clear()

    def generate(self, folder: str, local: bool = False, **arguments: Any) -> dict[str, Any]:
        """A run of a model that this layout shares; `local` keeps attention within each shard."""
        if folder not in self.pipes:
            self.pipes[folder] = quiet(self.member.load(folder))
        ranks = Overheard(self.member.ranks)
        with local_attention() if local else nullcontext():
            made = generate(self.pipes[folder], ranks, **arguments)
        return {**made, "said": ranks.said}

    def forward(self, folder: str, **inputs: Any) -> Any:
        """One call of a Cosmos model that this layout shares."""
        return forward(self.member.load(folder).transformer, **inputs)

    def refused(self, folder: str, **arguments: Any) -> tuple[str, str]:
        """Name and message of what a run that can't be shared raises."""
        from warpcache_ray.errors import WarpCacheError

        try:
            self.generate(folder, **arguments)
        except WarpCacheError as error:
            return type(error).__name__, error.message
        raise AssertionError("it was shared")

    def cancelled(self, folder: str, at: int) -> tuple[str, int]:
        """The error of a run that rank 0 alone is told to cancel, and how many steps it began."""
        from warpcache_ray.engine.events import Control, Generation
        from warpcache_ray.errors import Cancelled
        from warpcache_ray.policy_spec import parse_policy

        begun = []

        def on_step(event: Any) -> Control:
            begun.append(event.index)
            told = event.index == at and self.rank == 0
            return Control(cancel=told)

        engine = self._engine(folder)
        try:
            engine.generate(Generation("a cat", 0, **CALL), parse_policy("first_block"), on_step)
        except Cancelled as error:
            return str(error), len(begun)
        raise AssertionError("it wasn't cancelled")

    def decode(self, folder: str, latents: Any, apart: bool = False) -> tuple[Any, float]:
        """What this layout's VAE makes of latents, and its seconds; `apart` without the rows beyond each rank's."""
        import torch

        if folder not in self.pipes:
            self.pipes[folder] = self.member.load(folder)
        began = time.perf_counter()
        with torch.no_grad(), rows_apart() if apart else nullcontext():
            video = self.pipes[folder].vae.decode(torch.from_numpy(latents), return_dict=False)[0]
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

    def _engine(self, folder: str) -> Any:
        from warpcache_ray.engine.engine import Engine

        return Engine(self.member.load(folder), self.member.ranks)

    def _video(self, engine: Any) -> tuple[Any, str]:
        from warpcache_ray.engine.events import Generation
        from warpcache_ray.policy_spec import parse_policy

        asked = Generation("a cat", 0, **CALL)
        result = engine.generate(asked, parse_policy("never"), decode=self.rank == 0)
        return result.frames, result.latents_sha256

    def fingerprint(self, folder: str) -> str:
        """The model's, as this layout loads it."""
        from warpcache_ray.engine.install import fingerprint

        return fingerprint(self.member.load(folder).transformer)

    def others_first_block_cache(self, folder: str, threshold: float) -> None:
        """A run under diffusers' own first-block cache."""
        from diffusers import FirstBlockCacheConfig

        pipe = quiet(self.member.load(folder))
        pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=threshold))
        run(pipe)

    def agree(self, word: int) -> int:
        """Rank 0's word."""
        return int(self.member.ranks.broadcast(word + self.rank))


def quiet(pipe: Any) -> Any:
    """The pipeline without a progress bar."""
    pipe.set_progress_bar_config(disable=True)
    return pipe


def run(pipe: Any, seed: int = 0, **changes: Any) -> Any:
    """The final latents of a run."""
    import torch

    given = {"prompt": "a cat runs", "max_sequence_length": 16, "output_type": "latent"}
    generator = torch.Generator().manual_seed(seed)
    return pipe(generator=generator, **{**CALL, **given, **changes}).frames


def generate(
    pipe: Any, ranks: Any = None, spec: Any = "never", budget: int | None = None, **changes: Any
) -> dict[str, Any]:
    """A run under a policy: the final latents, what each denoiser call gave, and the decisions in order."""
    from warpcache_ray.engine.install import Installation
    from warpcache_ray.engine.session import SessionStore
    from warpcache_ray.policy_spec import parse_policy

    store = SessionStore() if budget is None else SessionStore(budget)
    installation = Installation(pipe, parse_policy("never"), ranks, store)
    try:
        with outputs_of(pipe) as outputs, installation.session(parse_policy(spec)) as session:
            final = run(pipe, **changes)
    finally:
        installation.remove()
    return {
        "latents": final.numpy(),
        "outputs": [output.numpy() for output in outputs],
        "decisions": [_row(record) for record in session.stats.records],
        "evictions": session.stats.evictions,
        "peak": session.stats.peak_cache_bytes,
    }


def forward(transformer: Any, batch: int, side: int, kind: str) -> Any:
    """A Cosmos transformer's output for a batch of latents of side × side, called as pipelines of that kind do."""
    import torch

    torch.manual_seed(1)
    inputs: dict[str, Any] = {
        "hidden_states": torch.randn(batch, 4, 3, side, side),
        "encoder_hidden_states": torch.randn(batch, 7, 16),
        "timestep": torch.rand(batch),
    }
    if kind == "2.5":
        inputs["timestep"] = torch.rand(batch, 1, 3, 1, 1)
        inputs["condition_mask"] = torch.rand(batch, 1, 3, side, side)
        images = torch.randn(batch, 5, 12)
        inputs["encoder_hidden_states"] = inputs["encoder_hidden_states"], images
    else:
        inputs["fps"] = 8
        inputs["attention_mask"] = torch.arange(7) < torch.tensor([[7], [4]])[:batch]
    with torch.no_grad():
        return transformer(**inputs, return_dict=False)[0].numpy()


@contextmanager
def outputs_of(pipe: Any) -> Iterator[list[Any]]:
    """Fills with what each denoiser call gives."""
    given: list[Any] = []
    inner = pipe.transformer.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        out = inner(*args, **kwargs)
        given.append(out[0])
        return out

    pipe.transformer.forward = forward
    try:
        yield given
    finally:
        pipe.transformer.forward = inner


class Overheard:
    """Ranks that note what this one says of its own tokens."""

    def __init__(self, ranks: Any) -> None:
        self.ranks = ranks
        self.said: list[list[list[float]]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.ranks, name)

    def gather(self, values: Any) -> Any:
        """Everyone's values."""
        self.said.append(values.tolist())
        return self.ranks.gather(values)


def same_decisions(one: dict[str, Any], two: dict[str, Any]) -> int:
    """Both runs decided alike, place by place, up to a drift too near its threshold; how many there were (0 or 1)."""
    for mine, theirs in zip(one["decisions"], two["decisions"], strict=True):
        assert mine["where"] == theirs["where"]
        if mine["what"] != theirs["what"]:
            assert mine["drift"] is not None, (mine, theirs)
            assert abs(mine["drift"] - mine["threshold"]) <= NEAR, (mine, theirs)
            # From here on the two runs are on different paths.
            return 1
        if mine["drift"] is not None:
            assert abs(mine["drift"] - theirs["drift"]) <= NEAR + 1e-3 * mine["drift"]
    return 0


def _row(record: Any) -> dict[str, Any]:
    decision = record.decision
    return {
        "where": (record.step, record.branch, record.layer),
        "what": (
            decision.action.value,
            decision.reason,
            tuple(o.value for o in decision.operators),
        ),
        "drift": decision.drift,
        "threshold": decision.threshold,
    }


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
