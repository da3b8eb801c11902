"""What can be checked before anything is started: the model is there, the devices suffice."""

from __future__ import annotations

from collections.abc import Mapping

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from warpcache_ray.config import ServiceConfig
from warpcache_ray.errors import InvalidConfig

HUB_TIMEOUT_S = 5.0


def check_model(config: ServiceConfig) -> None:
    """The model's folder, or its entry on the hub (or in the local hub cache), exists.

    Raises:
        InvalidConfig: it doesn't.
    """
    if config.model.folder is not None:
        return
    path = config.model.path
    try:
        hf_hub_download(path, "model_index.json", etag_timeout=HUB_TIMEOUT_S)
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise InvalidConfig(
            f"model.path = {path!r}: no folder with a model_index.json, and no such model on the hub or in its "
            f"local cache ({type(error).__name__})",
            "model.path",
        ) from error


def check_devices(config: ServiceConfig, resources: Mapping[str, float]) -> None:
    """The cluster has the GPUs that the replicas need.

    Raises:
        InvalidConfig: it has not.
    """
    ranks = config.parallel.world_size
    if config.model.device == "cuda":
        needed, there = ranks * config.replicas, int(resources.get("GPU", 0))
        if there < needed:
            raise InvalidConfig(
                f"parallel = {config.parallel} × replicas = {config.replicas} needs {needed} GPUs; "
                f"the cluster has {there}",
                "parallel",
            )


def check_layout(config: ServiceConfig) -> None:
    """The layout is one that this version runs.

    Raises:
        InvalidConfig: it splits a generation over ranks.
    """
    for name in ("ulysses", "ring", "cfg"):
        degree = getattr(config.parallel, name)
        if degree > 1:
            raise InvalidConfig(
                f"parallel.{name} = {degree}: ranks of this version don't share a generation yet; it must be 1",
                f"parallel.{name}",
            )
