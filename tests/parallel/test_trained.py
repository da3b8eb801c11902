"""The trained demo models on two ranks: how far from one process, which shares nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from diffusers import DiffusionPipeline
from groups import Group, outputs_of, quiet, run

import warpcache_ray.toyworld

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

TOYWORLD = Path(warpcache_ray.toyworld.__file__).parent
LAYOUTS = [(layout, model) for model in ("wan", "hunyuan") for layout in ("ulysses", "ring")]
CALL = {
    "height": 64,
    "width": 64,
    "num_frames": 17,
    "prompt": "a red ball rolls to the right over a green field",
    "max_sequence_length": 64,
}


@pytest.mark.parametrize(("layout", "model"), [*LAYOUTS, ("cfg", "wan")])
def test_the_trained_models_make_what_one_process_makes(
    layout: str, model: str, record_property: Callable[[str, object], None]
) -> None:
    """Each of a few forwards, from the same noise; how far 50 guided steps lead apart is reported."""
    folder = str(TOYWORLD / model)
    pipe = quiet(DiffusionPipeline.from_pretrained(folder))
    group = Group(patience_s=900.0)
    try:
        with outputs_of(pipe) as outputs:
            run(pipe, num_inference_steps=3, **CALL)
        few, _ = group.run(layout, "generate", folder=folder, num_inference_steps=3, **CALL)
        far = max(
            float(abs(mine.numpy() - theirs).max())
            for mine, theirs in zip(outputs, few["outputs"], strict=True)
        )
        record_property("furthest of a few forwards", far)
        assert far <= 1e-5
        final = run(pipe, num_inference_steps=50, **CALL).numpy()
        many, _ = group.run(layout, "generate", folder=folder, num_inference_steps=50, **CALL)
        record_property("furthest after 50 steps", float(abs(final - many["latents"]).max()))
    finally:
        group.stop()
