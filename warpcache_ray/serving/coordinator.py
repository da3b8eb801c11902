"""The Ray actor that holds the jobs: it takes them in, hands them to replicas, relays orders, counts epochs."""

from __future__ import annotations

import asyncio
import time
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from warpcache_ray.config import ServiceConfig
from warpcache_ray.errors import Cancelled, QueueFull
from warpcache_ray.serving import admission, lifecycle, logs
from warpcache_ray.serving.admission import Rates
from warpcache_ray.serving.attempts import Progress
from warpcache_ray.serving.dispatch import Dispatch
from warpcache_ray.serving.endings import Endings
from warpcache_ray.serving.fleet import Fleet
from warpcache_ray.serving.jobs import Jobs
from warpcache_ray.serving.leavings import forget_artifacts
from warpcache_ray.serving.lifecycle import (
    ANONYMOUS,
    Job,
    Once,
    Order,
    StaleFence,
    Status,
)
from warpcache_ray.serving.loops import Loop
from warpcache_ray.serving.metrics import Metrics
from warpcache_ray.serving.registry import Registry
from warpcache_ray.serving.upkeep import Upkeep
from warpcache_ray.serving.webhooks import Courier, planned
from warpcache_ray.serving.workload import workload
from warpcache_ray.store.connection import check
from warpcache_ray.store.connection import connect as connect_store
from warpcache_ray.store.events import Event
from warpcache_ray.store.jobs import JobStore
from warpcache_ray.store.policies import PolicyStore
from warpcache_ray.store.published import Published
from warpcache_ray.store.server import EmbeddedServer

REAP_S = 0.5


class Coordinator:
    """Async methods, each a transition of `lifecycle`; waiting ones wake on any change.

    What must outlive it is in the store: a new one in its place reads that, and hears from the replicas what they are
    at. They don't wait for it.
    """

    def __init__(
        self, application: str, config: ServiceConfig, server: EmbeddedServer | None = None
    ) -> None:
        logs.install(config)
        self.application = application
        self.config = config
        self.fleet = Fleet()
        self.metrics = Metrics()
        self.rates = Rates()
        self.epoch = 0
        """The model's: states of older ones are void."""
        self.registry: Registry
        self._configured = False
        self._server = server
        self._opened: asyncio.Task[Endings] | None = None
        self._loops: list[Loop] = []

    async def configure(self, config: ServiceConfig) -> None:
        """Takes a redeployed application's configuration; with another model, what was kept for the old one is void."""
        changed = config.model != self.config.model
        self.config, self._configured = config, True
        await self._jobs()
        if changed:
            self.fleet.model = None
            await self.invalidate(None)

    async def remind(self, config: ServiceConfig) -> None:
        """The configuration, for one that was started anew: Ray does that with the first one there ever was."""
        if not self._configured:
            self.config, self._configured = config, True

    async def find(self, once: Once) -> dict[str, Any] | None:
        """The record of the job that an idempotency key stands for.

        Raises:
            IdempotencyConflict: it stands for another request.
        """
        jobs = await self._jobs()
        known = jobs.known(once)
        return None if known is None else self._record(jobs, known)

    async def submit(
        self,
        request: dict[str, Any],
        policy: dict[str, Any],
        client: str = ANONYMOUS,
        once: Once | None = None,
        job_id: str | None = None,
        image: str | None = None,
    ) -> dict[str, Any]:
        """Takes a job in, by `job_id` if that is given, its image being where `image` says; where the request's
        idempotency key stands for one, that is it. `policy` is one in full, or `{"quality": …}`.

        Raises:
            IdempotencyConflict: the key stands for another request.
            QueueFull: as many jobs wait as the limit allows.
            Unavailable: the store doesn't take it.
        """
        jobs, now = await self._jobs(), time.time()
        patience = request.get("deadline_s")
        deadline = None if patience is None else now + patience
        job_id = job_id or lifecycle.new_id()
        choice = self.registry.submitted(policy, request, job_id)
        job = Job(job_id, request, choice.policy, now, client, deadline_at=deadline)
        job = replace(job, policy_origin=choice.origin)
        job = replace(job, busy_since=admission.busy_since(jobs.active, job.priority, now))
        job = replace(job, image=image, webhook=planned(job, self.config.webhooks))
        try:
            job = await jobs.add(job, self.config.model.limits.queue, once)
        except QueueFull as full:
            running = jobs.having(Status.RUNNING)
            room = admission.retry_after_s(running, self.rates, self._live(), now)
            raise QueueFull(full.message, full.param, room) from None
        return self._record(jobs, job)

    async def get(self, job_id: str) -> dict[str, Any]:
        """A job's record."""
        jobs = await self._jobs()
        return self._record(jobs, jobs.get(job_id))

    async def video_path(self, job_id: str) -> str | None:
        """Where the job's video is, if it has one."""
        path: str | None = (await self._jobs()).get(job_id).result.get("path")
        return path

    async def decisions(self, job_id: str) -> dict[str, Any]:
        """What the attempt that published the job's video decided."""
        return await (await self._jobs()).decisions(job_id)

    async def wait(self, job_id: str, timeout_s: float) -> dict[str, Any]:
        """The record, as soon as the job has ended or the time is over."""
        jobs = await self._jobs()
        await jobs.until(lambda: jobs.get(job_id).ended, timeout_s)
        return self._record(jobs, jobs.get(job_id))

    async def events(self, job_id: str, after: str, timeout_s: float) -> list[Event] | None:
        """What happened to a job after an event, as soon as there is something or the time is over; None if the job
        has ended and nothing came after that."""
        return await (await self._jobs()).events(job_id, after, timeout_s)

    async def cancel(self, job_id: str) -> dict[str, Any]:
        """Asks for the end of a job; the record says whether it has ended."""
        reason, endings = Cancelled("cancelled"), await self._endings()
        await endings.end(job_id, lambda job: lifecycle.request_end(job, reason, time.time()))
        return await self.get(job_id)

    async def for_owner(self, owner: str, method: str, job_id: str, *rest: Any) -> Any:
        """What another method says of a job, if that is the owner's; any other's is as unknown as one that isn't."""
        (await self._jobs()).get(job_id, owner)
        return await getattr(self, method)(job_id, *rest)

    async def page(
        self, owner: str | None, after: str | None, limit: int, newest_first: bool
    ) -> tuple[list[dict[str, Any]], bool]:
        """An owner's records, or all, by time of submission: those that follow a job's, and whether there are more."""
        jobs = await self._jobs()
        shown = (job for job in jobs if not job.removed and owner in (None, job.client))
        ordered = sorted(shown, key=_age, reverse=newest_first)
        if after is not None:
            # It may have been hidden since the page before.
            last = _age(jobs.find(after, owner) or jobs.get(after, owner))
            ordered = [j for j in ordered if (_age(j) < last if newest_first else _age(j) > last)]
        return [self._record(jobs, job) for job in ordered[:limit]], len(ordered) > limit

    async def remove(self, job_id: str) -> bool:
        """Hides an ended job and deletes its video; asks for the end of any other. Whether it was at its end."""
        endings = await self._endings()
        job = endings.jobs.get(job_id)
        if job.ended:
            await endings.jobs.change(job_id, lambda job: replace(job, removed=True))
            await endings.leavings.begin(forget_artifacts, self.config, job)
        else:
            await self.cancel(job_id)
        return job.ended

    async def invalidate(self, job_id: str | None) -> int:
        """Makes what is kept for a job, or for all, void from the next step on; the new epoch."""
        jobs = await self._jobs()
        if job_id is not None:
            jobs.get(job_id)
        epoch = await jobs.store.raise_epoch(of_model=job_id is None)
        if job_id is None:
            self.epoch = epoch
            await jobs.wake()
        else:
            await jobs.change(job_id, lambda job: lifecycle.invalidate(job, epoch))
        self.metrics.raised(epoch)
        return epoch

    async def claim(
        self, replica: str, info: dict[str, Any], timeout_s: float
    ) -> dict[str, Any] | None:
        """The next job for an idle replica, or None when the time is over or the replica is retired. Asking makes it
        known; if it is idle for all that a job of its own is running, the answer that gave it that one was lost."""
        jobs = await self._jobs()
        self.fleet.hear(replica, info)
        own = (job for job in jobs.having(Status.RUNNING) if job.replica == replica)
        until = time.monotonic() + timeout_s
        job = next(own, None) or await self._dispatch.next(replica, info, until)
        self.fleet.hear(replica, info)
        if job is None:
            return None
        return {
            "id": f"{job.id}#{job.fence}",
            "job_id": job.id,
            "fence": job.fence,
            "epoch": job.epoch,
            "request": job.request,
            "policy": job.policy,
            "image": job.image,
            "keep_latents": self._upkeep.wants(job),
        }

    async def report(
        self, job_id: str, fence: int, totals: dict[str, Any], replica: str, info: dict[str, Any]
    ) -> Order:
        """An attempt's progress, and what it is to do at its next step."""
        jobs = await self._jobs()
        self.fleet.hear(replica, info)
        done = Progress.told(totals)
        try:
            job = await jobs.note(job_id, lambda j: lifecycle.report(j, fence, done, time.time()))
        except StaleFence:
            return Order(cancel=True)
        self.metrics.measured(job, done.drifts)
        return lifecycle.order(job, fence, self.epoch)

    async def control(self, job_id: str, fence: int, epoch: int, timeout_s: float) -> Order:
        """The order for an attempt: as soon as there is another than to go on in `epoch`, or when the time is over."""
        jobs = await self._jobs()

        def order() -> Order:
            return lifecycle.order(jobs.get(job_id), fence, self.epoch)

        await jobs.until(lambda: order().cancel or order().epoch > epoch, timeout_s)
        return order()

    async def keep_decisions(self, job_id: str, fence: int, decisions: dict[str, Any]) -> None:
        """Keeps an attempt's decisions, which are published when it is."""
        await (await self._jobs()).store.keep_decisions(job_id, fence, decisions)

    async def finish(
        self, job_id: str, fence: int, result: dict[str, Any], error: dict[str, Any] | None
    ) -> bool:
        """Publishes an attempt's outcome. False: a newer attempt owns the job, nothing was published."""
        endings = await self._endings()
        if error is not None and error["retryable"]:
            return await endings.lose(job_id, fence, error=error)

        def over(job: Job) -> Job:
            if error is None:
                return lifecycle.succeed(job, fence, result, time.time())
            return lifecycle.fail(job, fence, error, time.time())

        return await endings.end(job_id, over)

    async def hand_back(self, job_id: str, fence: int) -> bool:
        """Takes the job of an attempt back whose replica is shut down; it costs the job no attempt."""
        return await (await self._endings()).hand_back(job_id, fence)

    async def retire(self, replica: str) -> None:
        """A replica takes no more jobs: one that waits for the next gets none, at once."""
        jobs = await self._jobs()
        self.fleet.retire(replica)
        await jobs.wake()

    async def upkeep(self, part: str, method: str, *rest: Any) -> Any:
        """What a part of the upkeep says, see `Upkeep`."""
        await self._jobs()
        return await self._upkeep.ask(part, method, *rest)

    async def health(self) -> dict[str, Any]:
        """Replicas that were seen lately, what the model can make, and how many jobs wait and run. Replicas that come
        as they are needed are as good as there, once one has told what it can make."""
        jobs = await self._jobs()
        live = self.fleet.live(self.config.lease_s)
        model = self.fleet.model if live or self.config.replicas == "auto" else None
        counts = {s.value: jobs.count(s) for s in Status}
        return {"replicas": live, "model": model, "jobs": counts}

    async def workload(self) -> dict[str, float]:
        """How much there is to do, for Serve's autoscaling."""
        jobs, known = await self._jobs(), self.fleet.model is not None
        return workload(jobs.active, self.rates, self.config, known, time.time())

    async def published(self, method: str, *arguments: Any) -> Any:
        """What the published policies say to that, or what has become of them."""
        await self._jobs()
        return await getattr(Published(self.registry.store), method)(*arguments)

    async def offered(self, request: dict[str, Any]) -> dict[str, Any]:
        """The policy that such a request would be given for each name of a quality, and where it comes from."""
        await self._jobs()
        return {name: asdict(choice) for name, choice in self.registry.offered(request).items()}

    async def metrics_text(self) -> str:
        """Prometheus' text format."""
        jobs = await self._jobs()
        self.metrics.standing(jobs.active, self.rates.cost, self._live(), self.config)
        self.metrics.loaded(self.fleet.live(self.config.lease_s).values())
        self.metrics.stored(jobs.store.answers)
        self.metrics.published(self.registry.slots, self.registry.away)
        return self.metrics.text()

    async def _jobs(self) -> Jobs:
        return (await self._endings()).jobs

    async def _endings(self) -> Endings:
        # Not in the constructor, which has no event loop. A store that can't be opened is asked for again.
        if self._opened is None or (self._opened.done() and self._opened.exception()):
            self._opened = asyncio.create_task(self._open())
        endings = await asyncio.shield(self._opened)
        if endings.jobs.store.superseded:
            await endings.jobs.store.hold()
        for loop in self._loops:
            loop.keep_up()
        return endings

    async def _open(self) -> Endings:
        url = self.config.store.address
        if not url:
            self._server = self._server or EmbeddedServer(self.config.store_folder)
            await asyncio.to_thread(self._server.start)
            url = self._server.url
        redis = connect_store(url)
        await check(redis)
        store = JobStore(redis, self.application)
        # From here on one that is still about (its node was cut off) can't write: what is read is how things stand.
        await store.open()
        jobs = Jobs(store, self.metrics.saw)
        await jobs.load()
        self.metrics.know(jobs)
        self.rates = Rates.of(jobs)
        self.epoch = await jobs.store.model_epoch()
        self.metrics.raised(self.epoch)
        self._upkeep, self._dispatch = Upkeep(self, jobs, redis), Dispatch(self, jobs)
        endings = Endings(jobs, self.rates, lambda: self.config)
        self.registry = Registry(
            PolicyStore(redis, self.application),
            self.config.known_policies / self.application,
            lambda: self.config,
            lambda: self.fleet.models(self.config.lease_s, self.config.replicas == "auto"),
        )
        await self.registry.load()
        self._loops = [
            Loop("store's keeper", self._keep_store),
            Loop("reaper", partial(self._reap, endings)),
            Loop("courier", Courier(jobs, lambda: self.config).look),
            Loop("policies' follower", self.registry.follow),
            Loop("policies' poll", self.registry.poll),
        ]
        return endings

    def _record(self, jobs: Jobs, job: Job) -> dict[str, Any]:
        turns = self._dispatch.turns() if job.status is Status.QUEUED else []
        running = jobs.having(Status.RUNNING)
        ahead = admission.outlook(job, turns, running, self.rates, self._live(), time.time())
        return job.to_dict() | ahead

    def _live(self) -> int:
        return len(self.fleet.live(self.config.lease_s))

    async def _keep_store(self) -> None:
        await asyncio.sleep(REAP_S)
        if self._server is not None:
            # Returns at once where it lives.
            await asyncio.to_thread(self._server.start)

    async def _reap(self, endings: Endings) -> None:
        await asyncio.sleep(REAP_S)
        await endings.jobs.store.hold()
        await endings.reap()
        await endings.settle()


def _age(job: Job) -> tuple[float, str]:
    return job.created_at, job.id
