"""A rank's part of profiling by itself: runs the profiler on its model until it is through, or told to leave it off."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from warpcache_ray.config import ServiceConfig
from warpcache_ray.errors import Cancelled

if TYPE_CHECKING:
    from warpcache_ray.engine.engine import Engine


def profiled(
    engine: Engine, plan: dict[str, Any], config: ServiceConfig, on_call: Callable[[], None]
) -> dict[str, Any]:
    """The document that a plan comes to, whose report is written; or that it was left off: `on_call` hears of each call
    of the model, and raises Cancelled for that. The runs that were made till then are kept, and not made again.

    Raises:
        InvalidRequest: runs that can't be planned, or a quality out of reach.
    """
    from warpcache_ray.policy_document import Target
    from warpcache_ray.tuning.profiler import Wish, profile_model
    from warpcache_ray.tuning.report import write_report

    prompts = plan["prompts"]
    wish = Wish(Target("ssim", plan["quality"]), count=len(prompts))
    with engine.plain() as pipeline:
        hook = pipeline.transformer.register_forward_pre_hook(lambda *_: on_call())
        try:
            document, found = profile_model(
                pipeline, prompts, plan["arguments"], wish, config.profiles, progress=False
            )
        except Cancelled:
            return {"left": True}
        finally:
            hook.remove()
    write_report(document, found, _report(config, plan["group"]))
    return {"document": document.to_dict()}


def _report(config: ServiceConfig, group: str) -> Path:
    folder = config.profiler.sensitivity_path
    return Path(folder or config.profiles) / f"{group.removeprefix('sha256:')}.html"
