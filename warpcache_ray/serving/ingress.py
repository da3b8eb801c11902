"""The HTTP routes: each turns a request into a call of the coordinator and its answer into a response."""

from __future__ import annotations

import asyncio
import base64
import secrets
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, suppress
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from ray import serve
from ray.exceptions import RayActorError, RayTaskError

from warpcache_ray import __version__
from warpcache_ray.config import ServiceConfig
from warpcache_ray.errors import Unavailable, WarpCacheError
from warpcache_ray.media import MEDIA_TYPES
from warpcache_ray.serving import (
    access,
    adaptive,
    answers,
    audit_routes,
    handles,
    health,
    logs,
    page,
    policy_routes,
    problems,
    rpc,
    traces,
    videos,
)
from warpcache_ray.serving.access import CALLER, Caller, only_admins
from warpcache_ray.serving.artifacts import Artifact
from warpcache_ray.serving.delivery import deliver, public, ready
from warpcache_ray.serving.events import ANSWERS, LastEventId, follow
from warpcache_ray.serving.http_metrics import HttpMetrics
from warpcache_ray.serving.idempotency import IdempotencyKey, once
from warpcache_ray.serving.lifecycle import TERMINAL, Once, Status, new_id
from warpcache_ray.serving.outbound import Outbound
from warpcache_ray.serving.ratelimit import RateLimiter, Streams
from warpcache_ray.serving.references import Images, check_reference, takes_images
from warpcache_ray.serving.schemas import (
    GenerateRequest,
    Invalidation,
    VideoFields,
    check_shape,
    wanted_policy,
)
from warpcache_ray.serving.webhooks import check as check_webhook

WAIT_S = 20.0
RECONNECT_S = 0.5
REMIND_S = 2.0
IMAGE_ROUTES = ("/generate", "/v1/videos")

OF_NO_JOB = frozenset(
    {"find", "submit", "page", "health", "metrics_text", "published", "offered", "upkeep"}
)
"""The coordinator's methods that take no job's id first."""
LONG_POLLS = frozenset({"wait", "events"})
"""Those that answer when something has happened."""


class Service:
    """What the routes need: the configuration, and the coordinator's methods with their errors unwrapped, on behalf of
    whoever sent the request that is being answered."""

    def __init__(self, config: ServiceConfig, actor: Any) -> None:
        self.config = config
        self.actor = actor
        self.http = HttpMetrics()
        self.limiter = RateLimiter()
        self.streams = Streams(handles.STREAMS)
        self.outbound = Outbound(config.outbound)
        self.images = Images(config, self.outbound)
        self._said: set[asyncio.Future[Any]] = set()

    async def ask(self, method: str, *arguments: Any) -> Any:
        """Calls the coordinator. Where the caller has jobs of its own, others' are unknown to it.

        Raises:
            WarpCacheError: what it raised, or Unavailable while it restarts.
        """
        long = method in LONG_POLLS
        if method not in OF_NO_JOB and self.caller.owner is not None:
            method, arguments = "for_owner", (self.caller.owner, method, *arguments)
        call = asyncio.ensure_future(getattr(self.actor, method).remote(*arguments))
        try:
            return await (asyncio.shield(call) if long else call)
        except asyncio.CancelledError:
            if long:
                # The client has gone; the coordinator waits on until its time is over.
                self.streams.stay(self.caller.counted_as, call)
            raise
        except RayTaskError as error:
            raise error.cause from error
        except RayActorError as error:
            raise Unavailable("the coordinator is restarting; try again") from error

    def tell(self, method: str, *arguments: Any) -> None:
        """Calls the coordinator without waiting for it: for tasks that are at their end."""
        said = asyncio.ensure_future(self.ask(method, *arguments))
        self._said.add(said)
        said.add_done_callback(self._said.discard)

    def stream(self) -> AbstractContextManager[None]:
        """The caller has one more open, for as long as the block takes.

        Raises:
            RateLimited: it has as many as it may.
        """
        return self.streams.one(self.caller.counted_as, self.caller.rate)

    async def model_info(self) -> dict[str, Any]:
        """What the model can make, as its replicas tell.

        Raises:
            Unavailable: no replica is ready.
        """
        info: dict[str, Any] | None = (await self.ask("health"))["model"]
        if info is None:
            raise Unavailable("no replica is ready yet; try again")
        return info

    @property
    def caller(self) -> Caller:
        """Who asks."""
        return CALLER.get()

    async def submit(self, asked: VideoFields, once: Once | None) -> dict[str, Any]:
        """The record of the job that is asked for: a new one, or the one that the request had when it was sent before.

        Raises:
            InvalidRequest: the model can't make it, or the service doesn't allow it.
            IdempotencyConflict: the request's key stands for another one.
            RateLimited: the client has submitted as much as it may.
        """
        # Before all else: a request that was taken in is not refused when it is sent again.
        known: dict[str, Any] | None = await self.ask("find", once) if once else None
        if known is not None:
            return known
        if asked.webhook_url is not None:
            check_webhook(asked.webhook_url, self.outbound, self.config.webhooks)
        policy = wanted_policy(asked)
        seed = asked.seed if asked.seed is not None else secrets.randbelow(2**31)
        model, info = self.config.model, await self.model_info()
        multiple = None if info.get("makes") == "image" else info["frame_multiple"]
        fields = asked.resolved(model, multiple).job_request(model.defaults, seed)
        fields |= adaptive.allowance(asked, self.config)
        check_shape(fields, model.limits, info)
        check_reference(asked.reference, asked.image_field, info)
        fields |= traces.parent(self.config)
        self.limiter.take("submissions", self.caller.counted_as, self.caller.rate)
        rest = (policy, self.caller.name, once)
        if asked.reference is None:
            job: dict[str, Any] = await self.ask("submit", fields, *rest)
            return job
        # To its end, also if the client leaves: no image is to be left without its job.
        return await asyncio.shield(self._submit_with_image(asked, fields, *rest))

    async def _submit_with_image(
        self, asked: VideoFields, fields: dict[str, Any], *rest: Any
    ) -> dict[str, Any]:
        assert asked.reference is not None
        job_id, size = new_id(), _size(fields)
        # The image is there first, so that no job is ever without its own.
        kept = await self.images.take(job_id, asked.reference, asked.image_field, size)
        url = self.images.url(job_id)
        try:
            job: dict[str, Any] = await self.ask(
                "submit", fields | {"image": kept}, *rest, job_id, url
            )
        except WarpCacheError as error:
            # Without an answer it may have been taken in all the same; else the coordinator takes the image away.
            if not isinstance(error, Unavailable):
                await self.images.forget(job_id)
            raise
        if job["id"] != job_id:
            await self.images.forget(job_id)
        return job

    async def larger_bodies(self, path: str) -> int:
        """How many bytes a request to this path may have for its image, as base64 if need be.

        Raises:
            Unavailable: no replica is ready to tell whether the model takes images.
        """
        takes = path.endswith(IMAGE_ROUTES) and takes_images(await self.model_info())
        return self.config.model.limits.image_bytes * 4 // 3 + 4 if takes else 0

    async def video(self, job: dict[str, Any]) -> Artifact | None:
        """The job's video, if it has one."""
        url = await self.ask("video_path", job["id"])
        return None if url is None else Artifact(url)


def routes(service: Service) -> APIRouter:
    """All routes of the service."""
    router = APIRouter(responses=answers.PROBLEMS)
    _add_generation(router, service)
    _add_jobs(router, service)
    _add_admin(router, service)
    _add_descriptions(router, service)
    router.include_router(videos.routes(service))
    router.include_router(policy_routes.routes(service))
    router.include_router(page.routes(service, _public))
    router.include_router(audit_routes.routes(service))
    return router


def _add_generation(router: APIRouter, service: Service) -> None:
    @router.post("/generate", responses=answers.FINISHED)
    async def generate(
        body: GenerateRequest, request: Request, key: IdempotencyKey = None
    ) -> Response:
        """Takes a job in; answers with its id at once, or with its end if `wait` or a media type is asked for."""
        asked = once(key, service.caller.name, "/generate", body)
        form = body.output_format or service.config.model.defaults.output_format
        raw = MEDIA_TYPES[form] in request.headers.get("accept", "")
        if not (body.wait or raw):
            return JSONResponse(_public(await service.submit(body, asked), request))
        # Before the job is made: whoever may not wait for it has none.
        with service.stream():
            job = await service.submit(body, asked)
            job = await _until_ended(service, job, body.cancel_on_disconnect)
        if job["status"] != Status.SUCCEEDED:
            status = problems.status_of(job["error"])
            return JSONResponse({"error": job["error"], "job": _public(job, request)}, status)
        if raw:
            return await _file(service, job)
        return JSONResponse(await _with_video(service, job, body.response_format, request))


async def _until_ended(
    service: Service, job: dict[str, Any], cancel_on_disconnect: bool
) -> dict[str, Any]:
    try:
        while job["status"] not in TERMINAL:
            try:
                job = await service.ask("wait", job["id"], WAIT_S)
            except Unavailable:
                # The job outlives the coordinator that is restarting.
                await asyncio.sleep(RECONNECT_S)
    except asyncio.CancelledError:
        # So Serve tells that the client has gone.
        if cancel_on_disconnect:
            service.tell("cancel", job["id"])
        raise
    return job


def _add_jobs(router: APIRouter, service: Service) -> None:
    @router.get("/jobs/{job_id}", responses=answers.JOB)
    async def job(job_id: str, request: Request) -> JSONResponse:
        """The job's record: status, progress, cache summary, policy, seed, fingerprint of the latents."""
        return JSONResponse(_public(await service.ask("get", job_id), request))

    async def stream() -> AsyncIterator[None]:
        # FastAPI ends it when the answer has been sent, or its client has gone.
        with service.stream():
            yield

    @router.get(
        "/jobs/{job_id}/events",
        response_class=StreamingResponse,
        responses=ANSWERS,
        dependencies=[Depends(stream)],
    )
    async def events(job_id: str, request: Request, last: LastEventId = None) -> Response:
        """What happens to the job, as Server-Sent Events from its first one to its end, or from `Last-Event-ID` on."""
        return await follow(service.ask, job_id, last, lambda job: _public(job, request))

    @router.get("/jobs/{job_id}/decisions")
    async def decisions(job_id: str) -> dict[str, Any]:
        """What the attempt that made the video decided at each step: for every transformer and branch (and block, where
        each decides for itself) columns of steps, kinds, drifts, thresholds and reasons."""
        found: dict[str, Any] = await service.ask("decisions", job_id)
        return found

    @router.get("/jobs/{job_id}/video", response_class=FileResponse, responses=answers.VIDEO)
    async def video(job_id: str) -> Response:
        """The finished video."""
        return await _file(service, await service.ask("get", job_id))

    @router.delete("/jobs/{job_id}", responses=answers.JOB)
    async def cancel(job_id: str, request: Request) -> JSONResponse:
        """Cancels: a queued job at once, a running one at its next step boundary."""
        return JSONResponse(_public(await service.ask("cancel", job_id), request))


def _add_admin(router: APIRouter, service: Service) -> None:
    @router.post("/admin/invalidate", dependencies=[Depends(only_admins)])
    async def invalidate(body: Invalidation) -> dict[str, Any]:
        """Makes all cache states of a job, or of all jobs, void from their next step on; the new epoch."""
        return {"epoch": await service.ask("invalidate", body.job_id)}


def _add_descriptions(router: APIRouter, service: Service) -> None:
    @router.get("/models")
    async def models() -> dict[str, Any]:
        """The model that is served, what it can make, defaults and limits."""
        model = service.config.model
        return {
            "name": service.config.name,
            "path": model.path,
            **await service.model_info(),
            "defaults": {n: getattr(model.defaults, n) for n in model.defaults.__slots__},
            "limits": {n: getattr(model.limits, n) for n in model.limits.__slots__},
        }

    @router.get("/metrics", response_class=Response, responses=answers.METRICS)
    async def metrics() -> Response:
        """Prometheus' text format."""
        text = await service.ask("metrics_text") + service.http.text()
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")


def _size(fields: dict[str, Any]) -> tuple[int, int] | None:
    known = "width" in fields and "height" in fields
    return (fields["width"], fields["height"]) if known else None


def _public(job: dict[str, Any], request: Request) -> dict[str, Any]:
    return public(job, request.scope.get("root_path", ""))


async def _file(service: Service, job: dict[str, Any]) -> Response:
    form = job["request"]["output_format"]
    headers = {"x-job-id": job["id"], "x-seed": str(job["request"]["seed"])}
    return await deliver(ready(job, await service.video(job)), MEDIA_TYPES[form], headers)


async def _with_video(
    service: Service, job: dict[str, Any], form: str, request: Request
) -> dict[str, Any]:
    if form == "url":
        return _public(job, request)
    data = await asyncio.to_thread(ready(job, await service.video(job)).read)
    return _public(job, request) | {"b64_json": base64.b64encode(data).decode()}


def build_api(config: ServiceConfig, actor: Any) -> FastAPI:
    """The FastAPI application over a coordinator."""
    told: dict[str, Any] = {"version": __version__, "docs_url": None, "redoc_url": None}
    api = FastAPI(title="WarpCache-Ray", **told, **traces.of_requests(config))
    service = api.state.service = Service(config, actor)
    api.include_router(routes(service), dependencies=access.SCHEMES if config.access.keys else [])
    api.include_router(health.routes(service.ask))
    page.install(api)
    problems.install(api, config.model.limits.body_bytes, service.larger_bodies)
    access.install(api, config.access, service.limiter)
    service.http.install(api)
    return api


class Ingress(rpc.Methods):
    """Serves the routes, and gRPC's methods. `replicas` is bound so that Serve deploys them; jobs reach them by the
    coordinator."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, config: ServiceConfig, replicas: Any
    ) -> None:
        logs.install(config)
        self.replicas = replicas
        self.config = config
        self.actor = handles.connect(serve.get_replica_context().app_name, config)
        await self.actor.configure.remote(config)
        self.api = build_api(config, self.actor)
        self.service = self.api.state.service

    async def check_health(self) -> None:
        """Serve's health check; reminds a coordinator that was started anew."""
        # One that is starting, or slow, is no illness of this one.
        with suppress(RayActorError, TimeoutError):
            await asyncio.wait_for(self.actor.remind.remote(self.config), REMIND_S)

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Serve asks this now and then, for the policy of `autoscaling`."""
        work: dict[str, float] = await self.actor.workload.remote()
        return work

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Called by Serve after the constructor."""
        return self.api
