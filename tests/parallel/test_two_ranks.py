"""Two ranks make what one makes, and decide as one decides."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from diffusers import WanImageToVideoPipeline
from groups import Group
from PIL import Image
from runs import generate, outputs_of, quiet, run, same_decisions, same_on_both

from warpcache_ray.core.policies import POLICIES
from warpcache_ray.engine.engine import Engine
from warpcache_ray.engine.events import Control

Alone = Callable[..., dict[str, Any]]
Folders = dict[str, Path]

MODELS = ["wan", "hunyuan", "cosmos"]
SHARED = [(layout, model) for layout in ("ulysses", "ring") for model in MODELS] + [("cfg", "wan")]
ODD = {"height": 48, "width": 48}
"""27 tokens."""
SPECS: dict[str, dict[str, Any]] = {
    "never": {},
    "interval": {"every": 3},
    "first_block": {"threshold": 0.3},
    "first_block, deeper": {"threshold": 0.36, "probe_depth": 2, "blocks": (0, 3)},
    "teacache": {"threshold": 0.08},
    "easycache": {"threshold": 0.4, "warmup": 2},
    "magcache": {"ratios": (0.99,) * 8, "retention": 0.0},
    "magcache, output": {"ratios": (0.99,) * 8, "retention": 0.0, "site": "output"},
    "taylorseer": {"interval": 3, "order": 2},
    "taylorseer, blocks": {"interval": 3, "order": 2, "site": "blocks"},
    "taylorseer, layer": {"interval": 3, "order": 1, "site": "layer"},
    "dicache": {"threshold": 0.08, "retention": 0.0},
    "worldcache": {"threshold": 0.03, "warmup": 1},
    "worldcache, spatial": {"threshold": 0.06, "warmup": 1, "warp": True, "warp_from": 2},
    "warpcache": {"base_threshold": 0.006, "warp_threshold": 0.001, "min_threshold": 0.001},
    "lemica": {"schedule": (0, 1, 4), "schedule_steps": 8},
    "guidance": {"every": 3, "retention": 0.0},
    "auto": {"max_calls": 4},
}
DECIDING = [
    (layout, model, name)
    for layout, model in SHARED
    for name in SPECS
    if name in ("interval", "first_block", "worldcache, spatial", "auto")
    or (model != "cosmos" and name != "never")
]
PADDED = ["never", "first_block, deeper", "teacache", "dicache", "worldcache, spatial", "warpcache"]
"""Those that look at tokens."""


def _spec(name: str) -> dict[str, Any]:
    return {"name": name.split(",")[0], **SPECS[name]}


def _furthest(one: list[Any], two: list[Any]) -> float:
    return max(float(abs(a - b).max()) for a, b in zip(one, two, strict=True))


def test_every_policy_is_tried_here() -> None:
    """The table above misses none."""
    assert {_spec(name)["name"] for name in SPECS} == set(POLICIES)


@pytest.mark.parametrize(("layout", "model"), SHARED)
def test_forwards_are_those_of_plain_diffusers(
    pair: Group, folders: Folders, pipe_of: Callable[[str], Any], layout: str, model: str
) -> None:
    """Each denoiser call gives what one process without any of this gives; the video ends up the same."""
    pipe = pipe_of(model)
    with outputs_of(pipe) as outputs:
        final = run(pipe).numpy()
    ranks = pair.run(layout, "generate", folder=str(folders[model]))
    for rank in ranks:
        assert _furthest([o.numpy() for o in outputs], rank["outputs"]) <= 1e-5
        assert abs(final - rank["latents"]).max() <= 1e-4
    same_on_both(*ranks)


@pytest.mark.parametrize("layout", ["ulysses", "ring"])
@pytest.mark.parametrize("model", MODELS)
def test_attention_within_a_shard_would_be_noticed(
    pair: Group, folders: Folders, alone: Alone, layout: str, model: str
) -> None:
    """The comparison above fails if each rank attends to its own tokens only."""
    ranks = pair.run(layout, "generate", folder=str(folders[model]), local=True)
    assert _furthest(alone(model)["outputs"], ranks[0]["outputs"]) > 1e-3


@pytest.mark.parametrize(("layout", "model", "name"), DECIDING)
def test_two_ranks_decide_as_one(
    pair: Group,
    folders: Folders,
    alone: Alone,
    layout: str,
    model: str,
    name: str,
    record_property: Callable[[str, object], None],
) -> None:
    """Step by step and branch by branch; how often a drift was too near its threshold to tell is reported."""
    one = alone(model, spec=_spec(name))
    ranks = pair.run(layout, "generate", folder=str(folders[model]), spec=_spec(name))
    same_on_both(*ranks)
    near = same_decisions(one, ranks[0])
    record_property("drifts at their threshold", near)
    if not near:
        assert abs(one["latents"] - ranks[0]["latents"]).max() <= 1e-3
    actions = {row["what"][0] for row in one["decisions"]}
    assert actions > {"recompute"} or (name, model) == ("guidance", "hunyuan")


@pytest.mark.parametrize("name", PADDED)
@pytest.mark.parametrize("model", ["wan", "cosmos"])
def test_padding_counts_for_nothing(
    pair: Group, folders: Folders, alone: Alone, model: str, name: str
) -> None:
    """27 tokens on two ranks: outputs and decisions are those of one rank."""
    one = alone(model, spec=_spec(name), **ODD)
    ranks = pair.run("ulysses", "generate", folder=str(folders[model]), spec=_spec(name), **ODD)
    same_on_both(*ranks)
    if not same_decisions(one, ranks[0]):
        assert _furthest(one["outputs"], ranks[0]["outputs"]) <= 1e-4


@pytest.mark.parametrize(
    ("layout", "model"), [("ulysses", "hunyuan"), ("ring", "wan"), ("ring", "cosmos")]
)
def test_sizes_that_cannot_be_split_are_refused(
    pair: Group, folders: Folders, layout: str, model: str
) -> None:
    """On both ranks, before they wait for each other, with sizes that work."""
    for kind, message in pair.run(layout, "refused", folder=str(folders[model]), **ODD):
        assert kind == "InvalidRequest"
        assert "height = 48, width = 48, num_frames = 9: 27 tokens" in message
        assert "width = 32, width = 64" in message
    pair.run(layout, "generate", folder=str(folders[model]), num_inference_steps=1)


@pytest.mark.parametrize("layout", ["ulysses", "ring"])
def test_where_each_rank_alone_would_part_they_agree(
    pair: Group, folders: Folders, alone: Alone, layout: str
) -> None:
    """With a threshold between the drifts of the two shards, diffusers' first-block cache waits forever."""
    threshold = _between(pair, folders, layout)
    spec = {"name": "first_block", "threshold": threshold}
    ranks = pair.run(layout, "generate", folder=str(folders["wan"]), spec=spec)
    same_on_both(*ranks)
    assert same_decisions(alone("wan", spec=spec), ranks[0]) == 0


def _between(pair: Group, folders: Folders, layout: str) -> float:
    """A threshold between the two shards' own drifts at the first step that measures."""
    spec = {"name": "first_block", "threshold": 1e9}
    ranks = pair.run(layout, "generate", folder=str(folders["wan"]), spec=spec)
    first, second = (change / magnitude for ((change, magnitude),) in (r["said"][0] for r in ranks))
    assert abs(first - second) > 1e-3
    return float(first + second) / 2


@pytest.mark.parametrize("tokens", [15, 16])
@pytest.mark.parametrize("layout", ["ulysses", "ring"])
def test_texts_of_any_length_are_joined(
    pair: Group, folders: Folders, alone: Alone, layout: str, tokens: int
) -> None:
    """HunyuanVideo's are shared out where they are even in number, else held by all; skips keep track of both."""
    case = {"spec": _spec("first_block, deeper"), "max_sequence_length": tokens}
    one = alone("hunyuan", **case)
    ranks = pair.run(layout, "generate", folder=str(folders["hunyuan"]), **case)
    same_on_both(*ranks)
    assert same_decisions(one, ranks[0]) == 0
    assert _furthest(one["outputs"], ranks[0]["outputs"]) <= 1e-5


@pytest.mark.parametrize("layout", ["ulysses", "cfg"])
def test_two_experts_and_images_go_too(
    pair: Group, two_experts: Any, tmp_path: Path, layout: str
) -> None:
    """Wan 2.2's second transformer is shared as the first is; a first frame's channels are no noise."""
    parts = two_experts.components
    seen = type(parts["transformer"])(**{**parts["transformer"].config, "in_channels": 12})
    parts |= {"transformer": seen, "transformer_2": None, "image_encoder": None}
    parts |= {"image_processor": None, "boundary_ratio": None}
    for pipe, changes in (
        (two_experts, {}),
        (quiet(WanImageToVideoPipeline(**parts)), {"image": Image.new("RGB", (32, 32), "red")}),
    ):
        folder = tmp_path / type(pipe).__name__
        pipe.save_pretrained(folder)
        engine = Engine(pipe)
        for name in ("first_block", "auto"):
            one = generate(engine, spec=_spec(name), **changes)
            ranks = pair.run(layout, "generate", folder=str(folder), spec=_spec(name), **changes)
            same_on_both(*ranks)
            assert same_decisions(one, ranks[0]) == 0
            assert abs(one["latents"] - ranks[0]["latents"]).max() <= 1e-4


@pytest.mark.slow
def test_others_deadlock_there(folders: Folders) -> None:
    """The hang is real: the same threshold stops two ranks with diffusers' cache."""
    pair = Group()
    try:
        threshold = _between(pair, folders, "ulysses")
        pair.patience_s = 30.0
        with pytest.raises(TimeoutError):
            pair.run(
                "ulysses",
                "others_first_block_cache",
                folder=str(folders["wan"]),
                threshold=threshold,
            )
    finally:
        pair.stop()


@pytest.mark.parametrize("name", ["first_block", "taylorseer, layer", "auto"])
@pytest.mark.parametrize(
    ("layout", "model"), [("ulysses", "wan"), ("ulysses", "hunyuan"), ("cfg", "wan")]
)
def test_evictions_are_thesame_on_both(
    pair: Group, folders: Folders, layout: str, model: str, name: str
) -> None:
    """With a budget for half of what a run keeps, ranks lose the same states at the same steps."""
    case = {"folder": str(folders[model]), "spec": _spec(name)}
    budget = min(rank["peak"] for rank in pair.run(layout, "generate", **case)) // 2
    ranks = pair.run(layout, "generate", budget=budget, **case)
    same_on_both(*ranks)
    assert "budget" in {why for _, why in ranks[0]["losses"]}


def test_unguided_runs_have_nothing_to_share_by_cfg(
    pair: Group, folders: Folders, alone: Alone
) -> None:
    """Without guidance both halves compute the one branch."""
    spec, free = _spec("first_block"), {"guidance_scale": 1.0}
    ranks = pair.run("cfg", "generate", folder=str(folders["wan"]), spec=spec, **free)
    same_on_both(*ranks)
    assert same_decisions(alone("wan", spec=spec, **free), ranks[0]) == 0
    assert {row["where"][1] for row in ranks[0]["decisions"]} == {"cond"}


@pytest.mark.parametrize("layout", ["ulysses", "cfg"])
def test_a_cancel_ends_both_at_one_step(pair: Group, folders: Folders, layout: str) -> None:
    """Rank 0 alone is told; the next run is as any."""
    folder, words = str(folders["wan"]), {4: Control(cancel=True).word}
    ranks = pair.run(layout, "generate", folder=folder, spec=_spec("first_block"), words=words)
    same_on_both(*ranks)
    assert ranks[0]["end"] == "cancelled after step 4 of 8"
    assert pair.run(layout, "generate", folder=folder, num_inference_steps=1)[1]["end"] == ""


def test_the_word_is_rank_0s(pair: Group) -> None:
    """Whatever the other ranks hold."""
    assert [pair.run(layout, "agree", word=5) for layout in ("cfg", "ring")] == [[5, 5]] * 2


@pytest.mark.parametrize(("layout", "model"), [("ulysses", model) for model in MODELS])
def test_a_model_keeps_its_fingerprint(
    pair: Group, folders: Folders, pipe_of: Callable[[str], Any], layout: str, model: str
) -> None:
    """What was calibrated on one rank serves several."""
    from warpcache_ray.engine.fingerprints import fingerprint

    told = pair.run(layout, "fingerprint", folder=str(folders[model]))
    assert told == [fingerprint(pipe_of(model).transformer)] * 2


@pytest.mark.slow
def test_four_ranks_make_what_one_makes(folders: Folders, alone: Alone) -> None:
    """Two ways of sharing at once, padded and not, cache off and on."""
    group = Group(4)
    try:
        for layout, model, sizes in (
            ("ulysses × ring", "wan", {}),
            ("ulysses × ring", "hunyuan", {}),
            ("ulysses × ring", "cosmos", {}),
            ("ulysses × cfg", "wan", {}),
            ("ulysses × cfg", "wan", ODD),
            ("ring × cfg", "wan", {}),
        ):
            for name in ("never", "first_block", "worldcache, spatial", "warpcache", "auto"):
                one = alone(model, spec=_spec(name), **sizes)
                folder = str(folders[model])
                ranks = group.run(layout, "generate", folder=folder, spec=_spec(name), **sizes)
                for rank in ranks[1:]:
                    same_on_both(ranks[0], rank)
                if not same_decisions(one, ranks[0]):
                    assert _furthest(one["outputs"], ranks[0]["outputs"]) <= 1e-4
    finally:
        group.stop()
