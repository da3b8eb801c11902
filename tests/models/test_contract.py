"""The cache's promises on the real transformer classes, at toy size; and the README's table of what came of it."""

from __future__ import annotations

import json

import pytest
import torch
from contract import cached, checks, model
from table import BEGIN, END, OK, RECORD, ROOT, markdown
from toys import TOYS

from warpcache_ray.models import ADAPTERS, adapter_for

SAMPLE = ("FLUX.2", "CogVideoX I2V", "HunyuanDiT")
"""Text before the image and apart from it; frames before channels, conditioning; blocks that read others' outputs."""
QUICK = ("off", "site blocks", "site output", "exact reuse", "branches", "bare", "conditioning")
RECORDED = json.loads(RECORD.read_text())


@pytest.mark.parametrize("column", QUICK)
@pytest.mark.parametrize("name", SAMPLE)
def test_a_sample_keeps_the_contract(name: str, column: str) -> None:
    """What differs most between models, on three of them."""
    checks()[column](name)


@pytest.mark.slow
@pytest.mark.parametrize("name", TOYS)
def test_every_model_keeps_it(name: str) -> None:
    """Each check that tells models apart, on each model; `python tests/models/table.py` runs them all."""
    for column in QUICK:
        checks()[column](name)


def test_every_adapter_is_tried() -> None:
    """No class without a toy, no toy without an adapter, and as many classes as we say."""
    assert {toy.kind for toy in TOYS.values()} == set(ADAPTERS)
    assert len(ADAPTERS) >= 20


def test_the_record_is_of_all_models_and_checks() -> None:
    """It was run since the last model or check came, and nothing in it failed."""
    columns = {*checks(), "two ranks"}
    assert list(RECORDED["models"]) == list(TOYS)
    for name, row in RECORDED["models"].items():
        assert row["transformer"] == TOYS[name].kind
        assert set(row["checks"]) == columns
        for cell in row["checks"].values():
            assert cell == OK or cell.startswith("none: ")


def test_the_readme_shows_the_record() -> None:
    """No cell is written by hand."""
    readme = (ROOT / "README.md").read_text()
    shown = readme[readme.index(BEGIN) + len(BEGIN) : readme.index(END)]
    assert shown.strip() == markdown(RECORDED)


@pytest.mark.parametrize("name", TOYS)
def test_diffusers_says_the_same_of_their_blocks(name: str) -> None:
    """Where its own registry knows a block, the adapter has the stream at the same places of what the block returns."""
    from diffusers.hooks._helpers import TransformerBlockRegistry

    transformer = TOYS[name].build()
    adapter = adapter_for(transformer)
    assert adapter is not None
    for each in adapter.lists:
        known = TransformerBlockRegistry._registry
        TransformerBlockRegistry._register()
        block = known.get(type(getattr(transformer, each.name)[0]))
        # Of Bria's it says that they return the image first; they return it last.
        if block is not None and adapter.transformer != "BriaTransformer2DModel":
            assert block.hidden_states_argument_name == each.video
            assert block.return_hidden_states_index == each.returns.index(each.video)


def test_chunks_of_one_request_start_afresh() -> None:
    """A pipeline that denoises several chunks in one call has a run for each: none extrapolates from another's."""
    loop = model("Framepack")
    parameters = {"site": "output", "interval": 2, "order": 2, "warmup": 1}
    with (
        cached(loop, "taylorseer", **parameters) as installation,
        installation.session(installation.policy),
    ):
        assert torch.equal(loop(), loop())


def test_the_page_adds_what_is_there() -> None:
    """ "Adding a model" shows the file as it is, and names its line and its toy."""
    models = ROOT / "warpcache_ray" / "models"
    page = (models / "adding-a-model.md").read_text()
    assert f"```python\n{(models / 'mochi.py').read_text()}```" in page
    assert "mochi.ADAPTER," in (models / "__init__.py").read_text()
    assert "Mochi" in TOYS
