"""Weights in the forms that users have them, each with the cache on."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from warpcache_ray import extras
from warpcache_ray.engine.engine import Engine
from warpcache_ray.engine.events import Generation
from warpcache_ray.engine.fingerprints import identity
from warpcache_ray.errors import InvalidConfig, InvalidRequest
from warpcache_ray.models.weights import Weights, weight_bytes
from warpcache_ray.policy_spec import parse_policy

FILE = "diffusion_pytorch_model.safetensors"
SKIPS = {"name": "interval", "every": 2}


def generation(**changes: Any) -> Generation:
    size: dict[str, Any] = {"height": 32, "width": 32, "num_frames": 5, "num_inference_steps": 4}
    return Generation("a cat", 3, **size | changes)


def made(engine: Engine, policy: Any = SKIPS, **changes: Any) -> str:
    return engine.generate(generation(**changes), parse_policy(policy)).latents_sha256


@pytest.fixture(scope="module")
def wan(folders: dict[str, Path]) -> Path:
    return folders["wan"]


@pytest.fixture(scope="module")
def plain(wan: Path) -> str:
    """What the folder's own weights make."""
    return made(Engine(Weights(wan).load("cpu")))


@pytest.fixture(scope="module")
def clothed(wan: Path, loras: dict[str, str]) -> Engine:
    return Engine(Weights(wan, loras=loras).load("cpu"))


AUTHORS = {
    "condition_embedder.time_embedder.linear_1": "time_embedding.0",
    "condition_embedder.time_embedder.linear_2": "time_embedding.2",
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "condition_embedder.text_embedder.linear_2": "text_embedding.2",
    "condition_embedder.time_proj": "time_projection.1",
    "attn1": "self_attn",
    "attn2": "cross_attn",
    ".to_out.0.": ".o.",
    ".to_q.": ".q.",
    ".to_k.": ".k.",
    ".to_v.": ".v.",
    "proj_out": "head.head",
    "ffn.net.0.proj": "ffn.0",
    "ffn.net.2": "ffn.2",
    "norm2": "norm?",
    "norm3": "norm2",
    "norm?": "norm3",
}
"""What Wan's authors call what diffusers calls so."""


def as_published(name: str) -> str:
    for ours, theirs in AUTHORS.items():
        name = name.replace(ours, theirs)
    return name.replace(
        "scale_shift_table", "modulation" if name.startswith("blocks") else "head.modulation"
    )


def test_a_single_file_takes_the_place_of_the_folders_weights(
    wan: Path, plain: str, tmp_path: Path
) -> None:
    """In diffusers' names or in those of the model's authors, with only the configuration in the folder; other values
    make another video."""
    folder = tmp_path / "bare"
    shutil.copytree(wan, folder)
    state = load_file(folder / "transformer" / FILE)
    (folder / "transformer" / FILE).unlink()

    def loaded(weights: dict[str, torch.Tensor]) -> Any:
        file = tmp_path / f"{len(list(tmp_path.iterdir()))}.safetensors"
        save_file(weights, file)
        return Weights(folder, files={"transformer": str(file)}).load("cpu")

    published = {as_published(name): value for name, value in state.items()}
    assert not published.keys() & {"proj_out.weight", "scale_shift_table"}
    for weights in (state, published):
        # How they lie in memory tells on the last bits of a video, so they themselves are compared.
        read = loaded(weights).transformer.state_dict()
        assert read.keys() == state.keys()
        assert all(torch.equal(read[name], value) for name, value in state.items())
    assert made(Engine(loaded({name: value * 0.9 for name, value in state.items()}))) != plain


@pytest.mark.parametrize(
    ("change", "field", "said"),
    [
        ({"files": {"transformer": "nowhere.safetensors"}}, "model.files.transformer", "nowhere"),
        ({"files": {"transformer_2": "x"}}, "model.files", "has no 'transformer_2', only: trans"),
        ({"loras": {"ink": "nowhere.safetensors"}}, "model.loras.ink", "nowhere"),
        ({"path": "/nowhere"}, "model.path", "nowhere"),
    ],
)
def test_what_cannot_be_loaded_is_named(
    wan: Path, change: dict[str, Any], field: str, said: str
) -> None:
    """The field, the value and what is wrong with it."""
    pytest.importorskip("peft")
    with pytest.raises(InvalidConfig, match=said) as refused:
        Weights(**{"path": wan, **change}).load("cpu")
    assert refused.value.param == field


def test_a_cut_off_file_is_named(wan: Path, tmp_path: Path) -> None:
    """As when a download was broken off."""
    file = tmp_path / "cut.safetensors"
    file.write_bytes((wan / "transformer" / FILE).read_bytes()[:1000])
    with pytest.raises(InvalidConfig, match=r"cut.safetensors' can't be loaded"):
        Weights(wan, files={"transformer": str(file)}).load("cpu")


@pytest.mark.parametrize(
    ("package", "asked", "extra"),
    [
        ("torchao", {"dtype": "fp8"}, "fp8"),
        ("peft", {"loras": {"ink": "x"}}, "lora"),
        ("dfloat11", {"dfloat11": {"transformer": "x"}}, "dfloat11"),
    ],
)
def test_a_package_that_is_missing_is_named_with_its_extra(
    wan: Path, monkeypatch: pytest.MonkeyPatch, package: str, asked: dict[str, Any], extra: str
) -> None:
    """Before anything is computed with weights in a form that nobody asked for."""
    monkeypatch.setattr(extras.importlib.util, "find_spec", lambda name: name != package or None)
    with pytest.raises(InvalidConfig, match=rf"needs {package}.*warpcache-ray\[{extra}\]"):
        Weights(wan, **asked).load("cpu")


def test_each_request_wears_its_own_lora(clothed: Engine, plain: str) -> None:
    """In turn and at any scale; one that names none has the bytes of a model that never had any."""
    ink, clay = made(clothed, lora="ink"), made(clothed, lora="clay")
    half = made(clothed, lora="ink", lora_scale=0.5)
    assert len({plain, ink, clay, half}) == 4
    assert [made(clothed), made(clothed, lora="ink"), made(clothed, lora="clay")] == [
        plain,
        ink,
        clay,
    ]


def test_a_request_wears_what_diffusers_alone_would(
    clothed: Engine, wan: Path, loras: dict[str, str]
) -> None:
    """With the cache off: the same bytes as its own `load_lora_weights`."""
    alone = Weights(wan).load("cpu")
    alone.load_lora_weights(loras["clay"])
    assert made(clothed, "never", lora="clay") == made(Engine(alone), "never")


def test_a_change_of_loras_voids_what_is_kept(clothed: Engine) -> None:
    """States of another model's weights are lost, those of the same weights are not."""
    made(clothed)
    before = clothed.store.stats.invalidations
    with clothed.installation.session(parse_policy(SKIPS)) as waiting:
        clothed.pipeline("a cat", num_inference_steps=2, height=32, width=32, num_frames=5)
        assert clothed.store.nbytes > 0
        made(clothed)
        assert clothed.store.stats.invalidations == before
        made(clothed, lora="clay")
        assert clothed.store.stats.invalidations == before + 1
        assert waiting.nbytes == 0


def test_an_unknown_lora_is_refused_and_leaves_nothing(clothed: Engine, plain: str) -> None:
    """With the list of those that are there."""
    assert clothed.info.loras == ("clay", "ink")
    with pytest.raises(InvalidRequest, match=r"lora = 'wax' is unknown; .*: clay, ink"):
        made(clothed, lora="wax")
    assert made(clothed) == plain


def test_loras_leave_a_models_identity(clothed: Engine, wan: Path) -> None:
    """A policy that was made for it is still for it."""
    alone = Weights(wan).load("cpu")
    assert identity(clothed.pipeline.transformer) == identity(alone.transformer)


def test_offloaded_layers_compute_the_same(wan: Path, plain: str) -> None:
    """Also those around what the cache skips."""
    assert made(Engine(Weights(wan, group_offload=True).load("cpu"))) == plain


@pytest.fixture(scope="module")
def float8(wan: Path) -> Engine:
    """With linear weights in float8."""
    pytest.importorskip("torchao", reason="pip install 'warpcache-ray[fp8]'")
    return Engine(Weights(wan, dtype="fp8").load("cpu"))


def test_float8_is_smaller_and_near(float8: Engine, wan: Path) -> None:
    """Smaller than bfloat16 in bytes, about the same latents, and the cache skips as ever."""
    half = Engine(Weights(wan, dtype="bfloat16").load("cpu"))
    assert weight_bytes(float8.pipeline) < weight_bytes(half.pipeline)
    results = [e.generate(generation(), parse_policy(SKIPS)) for e in (float8, half)]
    assert results[0].stats.by_branch() == results[1].stats.by_branch()
    a, b = (result.latents.float() for result in results)
    assert 0 < (a - b).norm() < 0.2 * b.norm()


def test_float8_has_an_identity_of_its_own(float8: Engine, wan: Path) -> None:
    """Its weights are others; so are the policies that fit."""
    alone = Weights(wan).load("cpu")
    assert identity(float8.pipeline.transformer) != identity(alone.transformer)


def test_weights_are_counted_once(wan: Path) -> None:
    """Four bytes for each value of every model, and two in bfloat16."""
    pipeline = Weights(wan).load("cpu")
    models = (pipeline.transformer, pipeline.vae, pipeline.text_encoder)
    values = sum(p.numel() for model in models for p in (*model.parameters(), *model.buffers()))
    assert weight_bytes(pipeline) == 4 * values
