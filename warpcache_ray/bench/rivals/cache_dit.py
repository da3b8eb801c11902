"""cache-dit's own library: DBCache with or without a calibrator, and its static step masks."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from warpcache_ray.bench.rivals.made import Generate, run


@contextmanager
def cache_dit(pipeline: Any, options: Mapping[str, Any], steps: int) -> Iterator[Generate]:
    """Fields of `DBCacheConfig`, with `calibrator: taylorseer | foca | dmd` and its fields in `calibrator_options`.

    `steps_computation_mask` may be one of its own policies (slow, medium, fast, ultra), or `{warmup: w, every: n}`
    (the first w steps, every n-th from there, the last), besides the list itself.
    """
    import cache_dit as library

    # Every configuration is logged at INFO and every removal at WARNING, by loggers that share one handler.
    for handler in logging.getLogger("CACHE_DIT").handlers:
        handler.setLevel(logging.ERROR)
    _isolate(pipeline)
    fields = {**options, "num_inference_steps": steps}
    calibrator = _calibrator(library, fields.pop("calibrator", None), fields)
    if "steps_computation_mask" in fields:
        fields["steps_computation_mask"] = _mask(library, fields["steps_computation_mask"], steps)
    library.enable_cache(
        pipeline, cache_config=library.DBCacheConfig(**fields), calibrator_config=calibrator
    )
    try:
        yield lambda g: run(pipeline, g)
    finally:
        library.disable_cache(pipeline)


def _isolate(pipeline: Any) -> None:
    """cache-dit patches `__call__` of the pipeline's class; here this is one that no other pipeline has."""
    kind = type(pipeline)
    pipeline.__class__ = type(kind.__name__, (kind,), {"__module__": kind.__module__})


def _calibrator(library: Any, name: str | None, fields: dict[str, Any]) -> Any:
    given = fields.pop("calibrator_options", {})
    if name is None:
        return None
    kinds = {
        "taylorseer": library.TaylorSeerCalibratorConfig,
        "foca": library.FoCaCalibratorConfig,
        "dmd": library.DMDCalibratorConfig,
    }
    return kinds[name](**given)


def _mask(library: Any, mask: Any, steps: int) -> list[int]:
    if isinstance(mask, str):
        found: list[int] = library.steps_mask(mask_policy=mask, total_steps=steps)
        return found
    if isinstance(mask, list):
        return mask
    warmup, every = mask["warmup"], mask["every"]
    return [int(s < warmup or (s - warmup) % every == 0 or s == steps - 1) for s in range(steps)]
