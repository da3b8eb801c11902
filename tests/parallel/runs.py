"""Runs of a model that one rank and several make alike, and what they are compared by."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

CALL = {"height": 32, "width": 32, "num_frames": 9, "num_inference_steps": 8}
NEAR = 1e-5
"""Drifts this close to their threshold may fall on either side of it."""


def quiet(pipe: Any) -> Any:
    """The pipeline without a progress bar."""
    pipe.set_progress_bar_config(disable=True)
    return pipe


@dataclass(frozen=True)
class Asked:
    """A generation by arguments of the pipeline, of which a service's callers may give but a few."""

    seed: int
    changes: dict[str, Any]
    lora: str | None = None
    lora_scale: float = 1.0
    guidance_scale: float | None = None
    fps: int | None = None

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
    lora: str | None = None,
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
    asked, policy = Asked(seed, changes, lora), parse_policy(spec)
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
