"""What is missing in a model's folder is said before it is loaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from warpcache_ray.config import ModelConfig, ServiceConfig
from warpcache_ray.errors import InvalidConfig
from warpcache_ray.model_folder import check_components
from warpcache_ray.serving.preflight import check_model

WEIGHTS = "diffusion_pytorch_model"


@pytest.fixture
def folder(folders: dict[str, Path], tmp_path: Path) -> Path:
    """A copy to take things from."""
    shutil.copytree(folders["wan"], tmp_path / "wan")
    return tmp_path / "wan"


def refusal(folder: Path) -> str:
    with pytest.raises(InvalidConfig) as refused:
        check_model(ServiceConfig(ModelConfig(str(folder))))
    assert refused.value.param == "model.path"
    return refused.value.message


def test_whole_folders_pass(folders: dict[str, Path]) -> None:
    """Each architecture's."""
    for folder in folders.values():
        check_components(folder)


@pytest.mark.parametrize(
    ("gone", "said"),
    [
        ("vae", r"names vae (AutoencoderKLWan), but there is no folder vae/"),
        ("text_encoder/config.json", "text_encoder (UMT5EncoderModel), but there is no config"),
        ("scheduler/scheduler_config.json", "scheduler (UniPCMultistepScheduler)"),
        (f"transformer/{WEIGHTS}.safetensors", "no weights (*.safetensors) in transformer/"),
    ],
)
def test_the_component_is_named(folder: Path, gone: str, said: str) -> None:
    """With its class, and what of it isn't there."""
    place = folder / gone
    shutil.rmtree(place) if place.is_dir() else place.unlink()
    assert said in refusal(folder)


def test_a_lost_shard_is_named(folder: Path) -> None:
    """Of weights in several files, as large models have them."""
    (folder / "transformer" / f"{WEIGHTS}.safetensors").rename(
        folder / "transformer" / "1.safetensors"
    )
    index = {"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}
    (folder / "transformer" / f"{WEIGHTS}.safetensors.index.json").write_text(json.dumps(index))
    assert "no transformer/2.safetensors, one of the 2 files of its weights" in refusal(folder)


def test_weights_may_be_elsewhere(folder: Path) -> None:
    """In the single file that the configuration names, which then has to be there."""
    (folder / "transformer" / f"{WEIGHTS}.safetensors").unlink()
    file = folder / "mine.safetensors"
    model = ModelConfig(str(folder), files={"transformer": str(file)})
    with pytest.raises(InvalidConfig, match=r"model.files.transformer = .*mine.*: no such file"):
        check_model(ServiceConfig(model))
    file.touch()
    check_model(ServiceConfig(model))


def test_a_folder_that_is_no_pipeline_says_so(tmp_path: Path) -> None:
    """Rather than that the hub has none of that name."""
    message = refusal(tmp_path)
    assert "is a folder without a model_index.json" in message
