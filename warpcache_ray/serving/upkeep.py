"""What the coordinator does to keep policies good while replicas are idle."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from warpcache_ray.serving.autoprofiler import AutoProfiler
from warpcache_ray.serving.jobs import Jobs
from warpcache_ray.serving.lifecycle import Job, Status
from warpcache_ray.serving.sampling import wanted
from warpcache_ray.store.audits import AuditStore
from warpcache_ray.store.profiles import ProfileStore

if TYPE_CHECKING:
    from warpcache_ray.serving.auditor import Auditor
    from warpcache_ray.serving.coordinator import Coordinator


class Upkeep:
    """Its parts, by name: `calls`, `audits` and `profiles`. `redis` is a client of the store's server."""

    def __init__(self, hub: Coordinator, jobs: Jobs, redis: Any) -> None:
        self._hub = hub
        self._jobs = jobs
        self._redis = redis
        self._parts: dict[str, Any] = {}

    def wants(self, job: Job) -> bool:
        """Whether the job will be audited, if there is time."""
        return wanted(job, self._hub.config.audits.share)

    async def ask(self, part: str, method: str, *rest: Any) -> Any:
        """What a method of a part says."""
        if part not in self._parts:
            if method == "next" and not self._begins(part):
                return None
            made = await asyncio.to_thread(self._make, part)
            self._parts.setdefault(part, made)
        return await getattr(self._parts[part], method)(*rest)

    def _begins(self, part: str) -> bool:
        return part != "audits" or any(map(self.wants, self._jobs.having(Status.SUCCEEDED)))

    def _make(self, part: str) -> Calls | Auditor | AutoProfiler:
        hub, jobs, redis = self._hub, self._jobs, self._redis
        if part == "calls":
            return Calls(hub, jobs)
        audits = AuditStore(redis, hub.application)
        policies = hub.registry.store
        if part == "profiles":
            profiles = ProfileStore(redis, hub.application)
            return AutoProfiler(jobs, hub.fleet, profiles, policies, audits, lambda: hub.config)
        # It loads scipy, which takes longer than a coordinator has to come back: not before it is needed.
        from warpcache_ray.serving.auditor import Auditor

        return Auditor(jobs, hub.fleet, hub.metrics, audits, policies, lambda: hub.config)


class Calls:
    """Calls replicas back that are at no job."""

    def __init__(self, hub: Coordinator, jobs: Jobs) -> None:
        self._fleet = hub.fleet
        self._jobs = jobs

    async def wait(self, replica: str, info: dict[str, Any], timeout_s: float) -> bool:
        """Whether the replica is to look for a job, or to end: as soon as it is, or when the time is over."""
        self._fleet.hear(replica, info)

        def called() -> bool:
            return self._jobs.count(Status.QUEUED) > 0 or self._fleet.retired(replica)

        return await self._jobs.until(called, timeout_s)
