"""How the processes of an application find its coordinator."""

from __future__ import annotations

from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from warpcache_ray.config import MOST_REPLICAS, ServiceConfig
from warpcache_ray.serving.coordinator import Coordinator

NAMESPACE = "warpcache"

REQUESTS = 1000
"""How many the ingress has at a time."""
STREAMS = REQUESTS // 2
"""How many of them may stay open until something happens."""
REPLICA_CALLS = 8
"""A replica's to claim, to report, to hear orders and to finish, each perhaps twice: given up and made anew."""
CALLS = REQUESTS + STREAMS + REPLICA_CALLS * MOST_REPLICAS
"""How many the coordinator has at a time. A request makes one after the other, and leaves one behind only if it was a
stream and goes on being counted as that: so however many clients wait, replicas are heard."""


def connect(application: str, config: ServiceConfig) -> Any:
    """Handle of the coordinator of a Serve application's jobs in a store, started on first use, on the node of whoever
    uses it. It outlives replicas and ingress."""
    actor = ray.remote(Coordinator)
    return actor.options(
        name=f"coordinator-{application}-{config.store_name}",
        namespace=NAMESPACE,
        get_if_exists=True,
        lifetime="detached",
        num_cpus=0,
        # Ray lets chance place an actor that needs nothing at all.
        memory=1,
        max_concurrency=CALLS,
        max_restarts=-1,
        # Not in the replica's placement group, with which even detached actors die. Nor on a head node that serves
        # nothing, where it would fit too: jobs are taken in while the head is away. If this node dies, on another one.
        scheduling_strategy=NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=True
        ),
    ).remote(application, config)
