"""What the coordinator does to keep policies good, by parts that idle replicas ask for something to do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from warpcache_ray.serving.jobs import Jobs
from warpcache_ray.store.audits import AuditStore
from warpcache_ray.store.policies import PolicyStore

if TYPE_CHECKING:
    from warpcache_ray.serving.coordinator import Coordinator


def parts(
    hub: Coordinator, jobs: Jobs, audits: AuditStore, policies: PolicyStore
) -> dict[str, Any]:
    """By name. To be called when they are needed first: they load scipy, which takes longer than a coordinator has to
    come back."""
    from warpcache_ray.serving.auditor import Auditor

    return {
        "audits": Auditor(jobs, hub.fleet, hub.metrics, audits, policies, lambda: hub.config),
    }
