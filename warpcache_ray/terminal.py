"""What the commands share: how they speak, and how they load a model into their own process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer
import yaml
from rich.console import Console
from rich.markup import escape

from warpcache_ray.config import ModelConfig, ServiceConfig
from warpcache_ray.errors import InvalidPolicy, InvalidRequest, WarpCacheError
from warpcache_ray.policy_spec import POLICY_FILES, load_policy, parse_policy

if TYPE_CHECKING:
    from warpcache_ray.core.policy import Policy
    from warpcache_ray.engine.engine import Engine

DEMO_MODEL = "toyworld/wan"

console = Console()
complaints = Console(stderr=True)


def complain(error: WarpCacheError) -> typer.Exit:
    """Says what is wrong, on stderr; the exit to raise."""
    complaints.print(f"[red]{error.code}[/red]: {escape(error.message)}", highlight=False)
    return typer.Exit(2)


def sampled(model: str, *given: float | None) -> dict[str, Any]:
    """The arguments that are given, of height, width, num_frames and guidance_scale; the demo model has defaults of its
    own."""
    defaults = {"height": 64, "width": 64, "num_frames": 17, "guidance_scale": 4.0}
    chosen = {n: value for n, value in zip(defaults, given, strict=True) if value is not None}
    return {**(defaults if model.startswith("toyworld/") else {}), **chosen}


def policy_of(text: str) -> Policy:
    """The policy that a name, a file's path or YAML stands for.

    Raises:
        InvalidPolicy: there is none such.
    """
    return load_policy(text) if text.endswith(POLICY_FILES) else parse_policy(_yaml(text))


def _yaml(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        message = f"policy {text!r} is neither a name nor YAML: {error}"
        raise InvalidPolicy(message, "policy") from error


def load_engine(model: str, dtype: str, device: str, threads: int) -> Engine:
    """A model of ours, a folder's or a hub id's.

    Raises:
        InvalidConfig: there is none, or it can't be served.
        InvalidRequest: there is no such device.
    """
    from warpcache_ray.serving.preflight import check_model

    config = ServiceConfig(ModelConfig(model))
    check_model(config)
    with console.status(f"loading {model}"):
        import diffusers
        import torch
        import transformers

        from warpcache_ray.engine.engine import Engine

        diffusers.utils.logging.disable_progress_bar()
        transformers.utils.logging.disable_progress_bar()
        if device == "cuda" and not torch.cuda.is_available():
            raise InvalidRequest("device = 'cuda': there is no GPU here; use 'cpu'", "device")
        torch.set_num_threads(threads)
        return Engine.load(config.model.folder or model, dtype, device)
