"""What can be checked before anything is started: the model is there, the devices suffice."""

from __future__ import annotations

from collections.abc import Mapping

import httpx
from huggingface_hub import get_token, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

from warpcache_ray.config import ServiceConfig
from warpcache_ray.errors import InvalidConfig

INDEX = "model_index.json"
HUB_TIMEOUT_S = 5.0
DRIVER_CPUS = 0.1
INGRESS_CPUS = 0.1


def check_model(config: ServiceConfig) -> None:
    """The model's folder, or its entry in the local hub cache or on the hub, exists.

    Raises:
        InvalidConfig: it doesn't.
    """
    model = config.model
    if model.folder is not None or _cached(model.path, model.revision):
        return
    try:
        url = hf_hub_url(model.path, INDEX, revision=model.revision)
        # One try: the hub client's own retries would outlast the patience of whoever waits for this.
        token = get_token()
        headers = {"authorization": f"Bearer {token}"} if token else {}
        answer = httpx.head(url, headers=headers, timeout=HUB_TIMEOUT_S, follow_redirects=True)
        answer.raise_for_status()
    except (httpx.HTTPError, HFValidationError) as error:
        raise InvalidConfig(
            f"model.path = {model.path!r}: no folder with a {INDEX}, and no such model in the local hub cache or "
            f"on the hub ({type(error).__name__})",
            "model.path",
        ) from error


def _cached(path: str, revision: str | None) -> bool:
    try:
        return isinstance(try_to_load_from_cache(path, INDEX, revision=revision), str)
    except HFValidationError:
        return False


def check_devices(config: ServiceConfig, resources: Mapping[str, float]) -> None:
    """The cluster has the GPUs and CPUs that the replicas and the ingress need.

    Raises:
        InvalidConfig: it has not.
    """
    ranks = config.parallel.world_size * config.replicas
    needs = {"GPU": float(ranks)} if config.model.device == "cuda" else {}
    needs["CPU"] = config.replicas * DRIVER_CPUS + ranks + INGRESS_CPUS
    for kind, needed in needs.items():
        there = resources.get(kind, 0)
        if there < needed:
            raise InvalidConfig(
                f"replicas = {config.replicas} × {config.parallel} needs {needed:g} {kind}s; "
                f"the cluster has {there:g}",
                "replicas",
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
