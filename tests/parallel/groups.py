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
from dataclasses import dataclass
from multiprocessing.connection import Client, Connection, Listener, wait
from typing import Any

LAYOUTS = {
    "ulysses": (2, 1, 1),
    "ring": (1, 2, 1),
    "cfg": (1, 1, 2),
    "ulysses × ring": (2, 2, 1),
    "ulysses × cfg": (2, 1, 2),
    "ring × cfg": (1, 2, 2),
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
        from warpcache_ray.engine.engine import Engine

        if folder not in self.engines:
            self.engines[folder] = Engine(self.member.load(folder), self.ranks)
        self.ranks.said = []
        told = words if self.rank == 0 else None
        with _local_attention() if local else nullcontext():
            made = generate(self.engines[folder], words=told, **arguments)
        return {**made, "said": self.ranks.said}

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


@dataclass(frozen=True)
class Asked:
    """A generation by arguments of the pipeline, of which a service's callers may give but a few."""

    seed: int
    changes: dict[str, Any]

    def pipeline_arguments(self) -> dict[str, Any]:
        """What the tests' models take, changed."""
        return {**CALL, "prompt": "a cat runs", "max_sequence_length": 16, **self.changes}


def run(pipe: Any, seed: int = 0, **changes: Any) -> Any:
    """The final latents of a run of plain diffusers."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    given = Asked(seed, changes).pipeline_arguments()
    return pipe(generator=generator, output_type="latent", **given).frames


def generate(
    engine: Any,
    spec: Any = "never",
    budget: int | None = None,
    words: dict[int, int] | None = None,
    checkpoint: bytes | None = None,
    seed: int = 0,
    **changes: Any,
) -> dict[str, Any]:
    """A run under a policy, told the words after the steps that they stand at: why it ended before its time, and what
    it had come to; what each denoiser call gave, the decisions in order, and after how many of them states were lost.
    """
    from warpcache_ray.engine.checkpoint import Checkpoint
    from warpcache_ray.engine.events import Control
    from warpcache_ray.engine.session import DEFAULT_BUDGET
    from warpcache_ray.errors import Cancelled
    from warpcache_ray.policy_spec import parse_policy

    reached: list[Checkpoint] = []
    losses: list[tuple[int, str]] = []
    end = ""

    def on_step(event: Any) -> Control:
        reached[:] = [event.checkpoint()]
        return Control.read((words or {}).get(event.index + 1, 0))

    store = engine.store
    store.budget = DEFAULT_BUDGET if budget is None else budget
    store.on_evict = lambda session, why: losses.append((len(session.stats.records), why.value))
    start = Checkpoint.from_bytes(checkpoint) if checkpoint else None
    asked, policy = Asked(seed, changes), parse_policy(spec)
    with outputs_of(engine.pipeline) as outputs:
        try:
            engine.generate(asked, policy, on_step, checkpoint=start, decode=False)
        except Cancelled as error:
            end = error.message
    stats = engine.installation.last.stats
    return {
        "end": end,
        "step": reached[0].step,
        "checkpoint": reached[0].to_bytes(),
        "latents": reached[0].latents.numpy(),
        "outputs": [output.numpy() for output in outputs],
        "decisions": [_row(record) for record in stats.records],
        "losses": losses,
        "held": (store.nbytes, len(store.sessions)),
        "peak": stats.peak_cache_bytes,
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


def same_on_both(first: dict[str, Any], second: dict[str, Any]) -> None:
    """Two ranks came to the same end by the same way: every bit of it, and nothing is left."""
    for told in ("end", "step", "decisions", "losses", "checkpoint"):
        assert first[told] == second[told], told
    assert first["held"] == second["held"] == (0, 0)


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


@contextmanager
def _local_attention() -> Iterator[None]:
    """Each rank's queries see the keys of its own shard alone."""
    import xfuser.model_executor.layers.usp as usp

    names = ("get_sequence_parallel_world_size", "get_ulysses_parallel_world_size")
    kept = {name: getattr(usp, name) for name in names}
    vars(usp).update(dict.fromkeys(names, lambda: 1))
    try:
        yield
    finally:
        vars(usp).update(kept)


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
