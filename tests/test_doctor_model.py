"""`warpcache doctor --model` on folders that are whole, that lack something, and of models nobody adapted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from warpcache_ray.cli import app
from warpcache_ray.doctor_model import model_findings

Told = dict[str, tuple[str, str]]


def _told(folder: Path) -> Told:
    return {f.check: (f.state, f.text) for f in model_findings(folder)}


def test_a_whole_folder(folders: dict[str, Path]) -> None:
    """Components, sites, ranks and how branches are told."""
    told = _told(folders["wan"])
    assert {state for state, _ in told.values()} == {"ok"}
    assert told["transformer"] == ("ok", "WanTransformer3DModel")
    assert told["transformer: cache"][1] == "sites output, blocks, layer; blocks in blocks"
    assert "xFuserWanTransformer3DWrapper" in told["transformer: ranks"][1]
    assert told["branches"][1] == "announced by the pipeline"
    assert _told(folders["hunyuan"])["transformer: guidance"][1].startswith("distilled")
    assert _told(folders["cosmos"])["branches"][1].startswith("not announced")
    assert {_told(folder)["serving"][0] for folder in folders.values()} == {"ok"}


def test_pipelines_that_the_service_cannot_run_are_told(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    """By what they lack, or what they make."""
    folder = tmp_path / "model"
    shutil.copytree(folders["wan"], folder)
    index = json.loads((folder / "model_index.json").read_text())
    for pipeline, lacks in (
        ("HunyuanVideo15ImageToVideoPipeline", "has no height, width"),
        ("StableCascadeDecoderPipeline", "has no vae"),
        ("LTX2Pipeline", "makes sound"),
    ):
        (folder / "model_index.json").write_text(json.dumps({**index, "_class_name": pipeline}))
        state, text = _told(folder)["serving"]
        assert state == "absent"
        assert lacks in text


@pytest.mark.parametrize("lost", ["vae", "text_encoder", "transformer/*.safetensors"])
def test_what_is_missing_is_named(folders: dict[str, Path], tmp_path: Path, lost: str) -> None:
    """By the name of the component, and where it belongs."""
    folder = tmp_path / "model"
    shutil.copytree(folders["wan"], folder)
    for path in folder.glob(lost):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    name = lost.partition("/")[0]
    state, text = _told(folder)[name]
    assert state == "broken"
    assert f"{name}/" in text


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    """Says which file was looked for, and fails."""
    ((state, text),) = _told(tmp_path).values()
    assert state == "broken"
    assert str(tmp_path / "model_index.json") in text
    assert CliRunner().invoke(app, ["doctor", "--model", str(tmp_path)]).exit_code == 1


def test_a_model_without_an_adapter(folders: dict[str, Path], tmp_path: Path) -> None:
    """Is served at site output; what an adapter would have to name is told."""
    folder = tmp_path / "model"
    shutil.copytree(folders["wan"], folder)
    index = json.loads((folder / "model_index.json").read_text())
    index["transformer"][1] = "LatteTransformer3DModel"
    (folder / "model_index.json").write_text(json.dumps(index))
    config = {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 8}
    size = {"patch_size": 2, "sample_size": 8}
    (folder / "transformer" / "config.json").write_text(
        json.dumps(
            {**config, "cross_attention_dim": 16, "in_channels": 4, "caption_channels": 16, **size}
        )
    )
    state, text = _told(folder)["transformer: cache"]
    assert state == "absent"
    assert "site output only" in text
    assert "transformer_blocks: 2 × BasicTransformerBlock(hidden_states" in text
