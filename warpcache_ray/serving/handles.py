"""How the processes of an application find its coordinator."""

from __future__ import annotations

from typing import Any

import ray
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from warpcache_ray.config import ServiceConfig
from warpcache_ray.serving.coordinator import Coordinator

NAMESPACE = "warpcache"


def connect(application: str, config: ServiceConfig) -> Any:
    """Handle of a Serve application's coordinator, started on first use. It outlives replicas and ingress."""
    actor = ray.remote(Coordinator)
    return actor.options(
        name=f"coordinator-{application}",
        namespace=NAMESPACE,
        get_if_exists=True,
        lifetime="detached",
        num_cpus=0,
        max_concurrency=1000,
        max_restarts=-1,
        # A replica's children live in its placement group and die with it, even detached ones.
        scheduling_strategy=PlacementGroupSchedulingStrategy(placement_group=None),
    ).remote(application, config)
