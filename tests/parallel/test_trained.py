"""The trained demo models on two ranks: how far from one process, which shares nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from groups import Group
from runs import quiet, run

import warpcache_ray.toyworld

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

TOYWORLD = Path(warpcache_ray.toyworld.__file__).parent
LAYOUTS = [(layout, model) for model in ("wan", "hunyuan") for layout in ("ulysses", "ring")]
CALL = {
    "height": 64,
    "width": 64,
    "num_frames": 17,
    "prompt": "a red circle moving right fast over a blue background",
    "max_sequence_length": 64,
}


@pytest.mark.parametrize(("layout", "model"), [*LAYOUTS, ("cfg", "wan")])
def test_the_trained_models_make_what_one_process_makes(
    layout: str, model: str, record_property: Callable[[str, object], None]
) -> None:
    """Each of a few forwards, given what the ranks were given, up to 1e-5 of its largest value; how far 50 guided steps
    lead apart is reported."""
    folder = str(TOYWORLD / model)
    # Else the text encoder keeps the half precision that it is stored in.
    pipe = quiet(DiffusionPipeline.from_pretrained(folder, dtype=torch.float32))
    group = Group(patience_s=900.0)
    try:
        few, _ = group.run(layout, "generate", folder=folder, num_inference_steps=4, **CALL)
        many, _ = group.run(layout, "generate", folder=folder, num_inference_steps=50, **CALL)
    finally:
        group.stop()
    with _led_by(few["outputs"], pipe) as differences:
        run(pipe, num_inference_steps=4, **CALL)
    shares = [d / abs(out).max() for d, out in zip(differences, few["outputs"], strict=True)]
    record_property("furthest of a few forwards", f"{max(differences):.1e}")
    record_property("as a share of the largest value", f"{max(shares):.1e}")
    assert max(shares) <= 1e-5
    final = run(pipe, num_inference_steps=50, **CALL).numpy()
    record_property("furthest after 50 steps", f"{abs(final - many['latents']).max():.1e}")
    record_property("largest value after 50 steps", f"{abs(final).max():.1f}")


@contextmanager
def _led_by(others: list[Any], pipe: Any) -> Iterator[list[float]]:
    """The pipeline goes on with the others' outputs, so that all its inputs are theirs. Fills with how far each output
    of its own is from theirs."""
    differences: list[float] = []
    inner = pipe.transformer.forward

    def forward(*args: Any, **kwargs: Any) -> tuple[torch.Tensor]:
        theirs = others[len(differences)]
        differences.append(float(np.abs(inner(*args, **kwargs)[0].numpy() - theirs).max()))
        return (torch.from_numpy(theirs),)

    pipe.transformer.forward = forward
    try:
        yield differences
    finally:
        pipe.transformer.forward = inner
